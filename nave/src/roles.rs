//! One role in this process, until it is told to stop.

use std::{future::Future, time::Duration};

use anyhow::Context as _;
use nave_domain::Millis;
use nave_scheduler::watch::Patience;
use nave_store::Store;
use nave_validator::chain::{Chain, LocalChain};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{DatabaseArgs, GatewayArgs, SchedulerArgs, TreasuryArgs, ValidatorArgs};

/// Resolves when the process is asked to stop.
pub fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

pub fn span(millis: Millis) -> Duration {
    Duration::from_millis(millis.0.unsigned_abs())
}

async fn connect(args: &DatabaseArgs) -> anyhow::Result<Store> {
    Store::connect(&args.database).await.context("connect to the database")
}

pub async fn gateway(args: GatewayArgs) -> anyhow::Result<()> {
    let store = connect(&args.database).await?;
    let mut config = nave_gateway::Config::new(args.api, args.host_socket);
    config.fence_ms = args.protocol.fence;
    config.report_ms = args.protocol.report;
    if !args.registry.is_empty() {
        config.registries = args.registry;
    }
    config.insecure_registries = args.insecure_registry;
    nave_gateway::run(config, store, stop_signal()?).await
}

pub async fn scheduler(args: SchedulerArgs) -> anyhow::Result<()> {
    let patience = Patience::from_protocol(args.protocol.fence, args.protocol.report);
    nave_scheduler::run(patience, connect(&args.database).await?, stop_signal()?).await
}

pub async fn validator(args: ValidatorArgs) -> anyhow::Result<()> {
    let config = nave_validator::role::Config {
        epoch: args.epoch,
        sink: args.sink,
        chain: Chain::Local(LocalChain::new(&args.local_chain)),
    };
    nave_validator::run(config, connect(&args.database).await?, stop_signal()?).await
}

pub async fn treasury(args: TreasuryArgs) -> anyhow::Result<()> {
    nave_validator::treasury::run(span(args.every), connect(&args.database).await?, stop_signal()?).await
}

pub async fn migrate(args: DatabaseArgs) -> anyhow::Result<()> {
    connect(&args).await?.migrate().await.context("migrate the database")
}
