//! One role in this process, until it is told to stop.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use nave_domain::{Millis, mesh::Prefix};
use nave_gateway::HostListen;
use nave_mesh::{Namespace, PrivateKey};
use nave_scheduler::watch::Patience;
use nave_store::Store;
use nave_validator::{
    chain::{Chain, LocalChain},
    events,
    key::MarketKey,
    params,
};
use nave_verifier::Means;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{DatabaseArgs, GatewayArgs, HubArgs, SchedulerArgs, TreasuryArgs, ValidatorArgs, VerifierArgs},
    clouds,
    hub::{self, HOST_PORT},
    keys,
};

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
    let key = keys::load(&args.market_key)?;
    let prefix = Prefix::of_market(&key.public().0);
    let hosts = host_listen(prefix, Namespace::named(&args.host_namespace)?);
    let mut config = nave_gateway::Config::new(args.api, hosts, Arc::new(key));
    config.release_key = args.release_key;
    config.fence_ms = args.protocol.fence;
    config.report_ms = args.protocol.report;
    if !args.registry.is_empty() {
        config.registries = args.registry;
    }
    config.insecure_registries = args.insecure_registry;
    nave_gateway::run(config, store, stop_signal()?).await
}

/// Inside the hub's namespace, where nothing but the mesh is: a source address there is a
/// key's, and no filter or translation of the machine can change it.
fn host_listen(prefix: Prefix, namespace: Namespace) -> HostListen {
    let address = SocketAddr::from((prefix.hub(), HOST_PORT));
    let bind = move || namespace.enter(|| TcpListener::bind(address)).map_err(io::Error::other)?;
    HostListen { address, bind: Arc::new(bind) }
}

pub async fn hub(args: HubArgs) -> anyhow::Result<()> {
    let config = hub::Config {
        key: PrivateKey::load_or_generate(&args.key)?,
        name: args.interface,
        namespace: Namespace::named(&args.namespace)?,
        prefix: Prefix::of_market(&keys::load(&args.market_key)?.public().0),
        port: args.listen,
        endpoints: args.endpoint,
    };
    hub::run(config, connect(&args.database).await?, stop_signal()?).await
}

pub async fn verifier(args: VerifierArgs) -> anyhow::Result<()> {
    let tests = args.tests;
    let config = nave_verifier::Config {
        effort: args.proof_effort,
        enforced: tests.enforce.into_iter().collect(),
        shadow: tests.shadow.into_iter().collect(),
        means: Means { retest: tests.retest_every, probe: tests.probe_every, window: tests.window_every },
        transfer: tests.transfer_every,
        ..nave_verifier::Config::default()
    };
    nave_verifier::run(config, connect(&args.database).await?, stop_signal()?).await
}

pub async fn scheduler(args: SchedulerArgs) -> anyhow::Result<()> {
    let patience = Patience::from_protocol(args.protocol.fence, args.protocol.report);
    let (clouds, market) = clouds::load(args.clouds.as_deref())?;
    let store = connect(&args.database).await?;
    let renting = nave_scheduler::cloud::run(clouds, market, store.clone(), stop_signal()?);
    tokio::try_join!(nave_scheduler::run(patience, store, stop_signal()?), renting).map(drop)
}

pub async fn validator(args: ValidatorArgs) -> anyhow::Result<()> {
    let key = keys::load(&args.market_key)?;
    let key = MarketKey::new(key.public().to_string(), move |bytes| key.sign(bytes).0);
    let store = connect(&args.database).await?;
    let first_params = if args.local_params { params::local() } else { params::Params::default() };
    let deciding = events::run(key.clone(), store.clone(), stop_signal()?);
    let config = nave_validator::role::Config {
        epoch: args.epoch,
        sink: args.sink,
        chain: Chain::Local(LocalChain::new(&args.local_chain)),
        key,
        first_params,
        evidence: args.evidence_dir,
    };
    tokio::try_join!(nave_validator::run(config, store, stop_signal()?), deciding).map(drop)
}

pub async fn treasury(args: TreasuryArgs) -> anyhow::Result<()> {
    nave_validator::treasury::run(span(args.every), connect(&args.database).await?, stop_signal()?).await
}

pub async fn migrate(args: DatabaseArgs) -> anyhow::Result<()> {
    connect(&args).await?.migrate().await.context("migrate the database")
}
