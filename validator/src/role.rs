//! The validator role: closes epochs and walks each to its confirmation.
//!
//! Every step is a row's state change, so a crash resumes from the rows.

use std::{
    fs,
    future::Future,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::{Millis, epoch::EpochState};
use nave_settlement::{evidence::Totals, params::Params};
use nave_store::{EpochRow, Store};
use tokio::task::JoinSet;

use crate::{
    chain::{Chain, Commitment},
    key::MarketKey,
    settle::settle,
};

/// How the validator works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Length of an epoch.
    pub epoch: Millis,
    /// Hotkey that gets the weight nobody earned.
    pub sink: String,
    /// Where weights go.
    pub chain: Chain,
    /// Signs the evidence.
    pub key: MarketKey,
    /// The parameters of a market that has none yet.
    pub first_params: Params,
    /// Where bundles are also written to, once they may be read.
    pub evidence: Option<PathBuf>,
}

const TICK: Duration = Duration::from_secs(1);
/// How often idle devices are looked at, and what else there is to be done now and then.
const CHORES: Duration = Duration::from_secs(10);
/// The longest time between two looks that counts as idle; what is longer was an outage.
const IDLE_STEP: Millis = Millis(30_000);

/// Validates until `shutdown`.
///
/// # Errors
/// Where a part of it has ended; what fails is logged and tried again.
pub async fn run(config: Config, store: Store, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::pin!(shutdown);
    // Idle time that nobody looks at is lost, so nothing there waits for an epoch that takes long to settle.
    let mut beside = JoinSet::new();
    beside.spawn(chores_for_ever(store.clone()));
    loop {
        if let Err(error) = step(&config, &store).await {
            tracing::warn!(error = format!("{error:#}"), "an epoch is stuck; trying again");
        }
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            Some(ended) = beside.join_next() => ended.context("keep the accounts of miners")?,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

async fn chores_for_ever(store: Store) {
    loop {
        chores(&store).await;
        tokio::time::sleep(CHORES).await;
    }
}

/// Looks at idle devices, pays collateral back and forgets old bundles: each whether or not the others can be done.
pub async fn chores(store: &Store) {
    let done = [
        store.idle_look(IDLE_STEP).await.context("look at idle devices"),
        store.collateral_pay().await.map(drop).context("pay collateral back"),
        store.bundles_sweep().await.map(drop).context("forget old bundles"),
    ];
    for error in done.into_iter().filter_map(Result::err) {
        tracing::warn!(error = format!("{error:#}"), "could not keep the accounts of miners; trying again");
    }
}

/// Closes the open epoch if its time is over and moves every other one on as far as it goes.
///
/// # Errors
/// When the database or the chain does not answer, or the chain shows something else; every step done stays done. An epoch
/// is settled after those before it; otherwise one that is stuck does not hold up the others.
pub async fn step(config: &Config, store: &Store) -> anyhow::Result<()> {
    let chain = config.chain.name();
    store
        .params_first(&serde_json::to_value(&config.first_params)?)
        .await
        .context("give the first parameters")?;
    let open = store.epoch_open(chain).await.context("open an epoch")?;
    if store.now().await?.since(open.opened_at) >= config.epoch {
        store.epoch_close(open.epoch, chain).await.with_context(|| format!("close epoch {}", open.epoch))?;
    }
    let mut stuck = Ok(());
    for state in [EpochState::Closed, EpochState::Settled, EpochState::Submitted] {
        for epoch in store.epochs_in(state).await? {
            let moved = advance(config, store, &epoch).await;
            stuck = stuck.and(moved.with_context(|| format!("advance epoch {}", epoch.epoch)));
        }
    }
    stuck
}

async fn advance(config: &Config, store: &Store, epoch: &EpochRow) -> anyhow::Result<()> {
    match epoch.state {
        EpochState::Closed => {
            settle(store, epoch.epoch, &config.sink, &config.key).await?;
            alarm(store, epoch.epoch).await?;
        }
        EpochState::Settled => {
            config.chain.submit(epoch.epoch, &commitment(epoch)?)?;
            crash_point!("validator.submit.before_advance");
            store.epoch_advance(epoch.epoch, EpochState::Settled, None).await?;
        }
        EpochState::Submitted => {
            let (wanted, shown) = (commitment(epoch)?, config.chain.read_back(epoch.epoch)?);
            if shown.is_none() {
                // It was lost on the way; submitting the same again changes nothing.
                return Ok(config.chain.submit(epoch.epoch, &wanted)?);
            }
            anyhow::ensure!(shown == Some(wanted), "the chain shows something else than was submitted");
            if let Some(dir) = &config.evidence {
                write_bundle(store, epoch.epoch, dir).await.context("write the bundle")?;
            }
            crash_point!("validator.confirm.before_advance");
            store.epoch_advance(epoch.epoch, EpochState::Submitted, None).await?;
            tracing::info!(epoch = epoch.epoch, "weights confirmed");
        }
        EpochState::Open | EpochState::Confirmed => {}
    }
    Ok(())
}

/// What the chain is to show of a settled epoch.
fn commitment(epoch: &EpochRow) -> anyhow::Result<Commitment> {
    let weights = epoch.weights.clone().context("a settled epoch has weights")?;
    Ok(Commitment { weights, head: epoch.settled.as_ref().map(|settled| settled.head.clone()) })
}

/// Says so where more goes to the sink than the parameters take for normal.
async fn alarm(store: &Store, epoch: i64) -> anyhow::Result<()> {
    let params: Params = serde_json::from_value(store.params_of(Some(epoch)).await?)?;
    let Some(settled) = store.epoch_get(epoch).await?.settled else { return Ok(()) };
    let totals: Totals = serde_json::from_value(settled.result)?;
    let most = i128::from(totals.smoothed) * i128::from(params.sink_alarm_ppm) / 1_000_000;
    if i128::from(totals.sink) > most {
        tracing::warn!(
            epoch,
            sink = totals.sink,
            of = totals.smoothed,
            "much of the emission was earned by nobody"
        );
    }
    Ok(())
}

/// Writes beside and moves into place, so that a bundle is whole or absent.
async fn write_bundle(store: &Store, epoch: i64, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("epoch-{epoch}.jsonl.gz"));
    let fresh = path.with_extension("new");
    let mut file = io::BufWriter::new(fs::File::create(&fresh)?);
    let mut piece = 0;
    while let Some(bytes) = store.bundle_piece(epoch, piece).await? {
        file.write_all(&bytes)?;
        piece += 1;
    }
    file.into_inner()?.sync_all()?;
    Ok(fs::rename(&fresh, &path)?)
}
