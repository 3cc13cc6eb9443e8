//! The validator role: closes epochs and walks each to its confirmation.
//!
//! Every step is a row's state change, so a crash resumes from the rows.

use std::{collections::BTreeMap, future::Future, time::Duration};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::{
    Millis,
    epoch::{EpochState, weights},
};
use nave_store::{EpochRow, Store};

use crate::chain::Chain;

/// How the validator works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Length of an epoch.
    pub epoch: Millis,
    /// Hotkey that gets the weight nobody earned.
    pub sink: String,
    /// Where weights go.
    pub chain: Chain,
}

const TICK: Duration = Duration::from_secs(1);

/// Validates until `shutdown`.
///
/// # Errors
/// None so far: what fails is logged and tried again.
pub async fn run(config: Config, store: Store, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::pin!(shutdown);
    loop {
        if let Err(error) = step(&config, &store).await {
            tracing::warn!(error = format!("{error:#}"), "an epoch is stuck; trying again");
        }
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Closes the open epoch if its time is over and moves every other one on as far as it goes.
///
/// # Errors
/// When the database or the chain does not answer, or the chain shows other weights; every
/// step done stays done, and an epoch that is stuck does not hold up the others.
pub async fn step(config: &Config, store: &Store) -> anyhow::Result<()> {
    let chain = config.chain.name();
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
    let known = || epoch.weights.as_ref().context("a settled epoch has weights");
    match epoch.state {
        EpochState::Closed => {
            let delivered = store.epoch_delivered(epoch.epoch).await?;
            let values: BTreeMap<_, _> =
                delivered.into_iter().map(|(hotkey, row)| (hotkey, row.value)).collect();
            let vector = weights(&values, &config.sink);
            crash_point!("validator.settle.before_advance");
            store.epoch_advance(epoch.epoch, EpochState::Closed, Some(&vector)).await?;
        }
        EpochState::Settled => {
            config.chain.submit(epoch.epoch, known()?)?;
            crash_point!("validator.submit.before_advance");
            store.epoch_advance(epoch.epoch, EpochState::Settled, None).await?;
        }
        EpochState::Submitted => {
            let shown = config.chain.read_back(epoch.epoch)?;
            anyhow::ensure!(
                shown.as_ref() == Some(known()?),
                "the chain shows other weights than were submitted"
            );
            crash_point!("validator.confirm.before_advance");
            store.epoch_advance(epoch.epoch, EpochState::Submitted, None).await?;
            tracing::info!(epoch = epoch.epoch, "weights confirmed");
        }
        EpochState::Open | EpochState::Confirmed => {}
    }
    Ok(())
}
