//! Listening, serving and stopping.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use nave_store::Store;
use tokio::{
    net::TcpListener,
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    app::App,
    config::{Config, HostListen},
    host,
    listen::{Bounds, Connections, HEAD_MAX},
    routes,
};

/// Time between beats of the control clock; each may add one second at most.
const BEAT: Duration = Duration::from_millis(500);
/// Longest time that answers under way may take after the end was asked for.
const GRACE: Duration = Duration::from_secs(5);

/// Pause before listening for hosts is tried again.
const BIND_AGAIN: Duration = Duration::from_millis(500);
/// How often it is looked whether hosts must be listened for anew.
const BIND_ANEW: Duration = Duration::from_secs(2);
/// Time between looks for blobs that nothing refers to.
const FORGET: Duration = Duration::from_secs(600);
/// Connections of customers.
const CUSTOMERS: Bounds = Bounds { head: HEAD_MAX, all: 4_096, per_address: 1_024 };
/// Connections of hosts. An agent needs a handful.
const HOSTS: Bounds = Bounds { head: HEAD_MAX, all: 16_384, per_address: 32 };

/// A gateway that listens for customers and does not answer yet.
pub struct Gateway {
    api: TcpListener,
    config: Config,
    store: Store,
}

impl Gateway {
    /// Listens for customers.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn bind(config: Config, store: Store) -> anyhow::Result<Self> {
        let api = TcpListener::bind(config.api)
            .await
            .with_context(|| format!("listen for customers on {}", config.api))?;
        Ok(Self { api, config, store })
    }

    /// Where customers connect.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn api(&self) -> io::Result<SocketAddr> {
        self.api.local_addr()
    }

    /// Serves until `shutdown`, then lets answers under way finish for a short time. Hosts
    /// are served as soon as they can be listened for.
    ///
    /// # Errors
    /// When the customers' listener fails.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let (stop, stopping) = watch::channel(false);
        let listen = self.config.hosts.clone();
        let app = App::new(self.config, self.store, stopping.clone());
        let customers = Connections::new(routes::router(&app), CUSTOMERS, stopping.clone());
        let hosts = Connections::new(host::router(&app), HOSTS, stopping);
        tokio::select! {
            failed = customers.accept(&self.api) => {
                let Err(error) = failed;
                return Err(error).context("accept customers");
            }
            never = accept_hosts(&listen, &hosts) => match never {},
            () = beat(&app.store) => {}
            () = forget(&app.store) => {}
            () = shutdown => {}
        }
        drop(self.api);
        let _ = stop.send(true);
        let ended = async { tokio::join!(customers.ended(), hosts.ended()) };
        drop(timeout(GRACE, ended).await);
        Ok(())
    }
}

/// Forgets what nobody refers to, now and then.
async fn forget(store: &Store) {
    let mut rounds = interval(FORGET);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        match store.blobs_forget().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "blobs that nothing refers to were forgotten"),
            Err(error) => tracing::debug!(%error, "blobs could not be forgotten"),
        }
    }
}

/// Accepts hosts, wherever they can be listened for at the moment.
async fn accept_hosts(listen: &HostListen, hosts: &Connections) -> Infallible {
    loop {
        let mut listener = bound(listen).await;
        tracing::info!("listening for hosts on {}", listen.address);
        let failed = loop {
            tokio::select! {
                failed = hosts.accept(&listener) => { let Err(error) = failed; break error }
                anew = bound_anew(listen) => listener = anew,
            }
        };
        tracing::error!(error = %failed, "hosts cannot be accepted; listening again");
    }
}

/// A listener for hosts, as soon as there can be one.
async fn bound(listen: &HostListen) -> TcpListener {
    loop {
        match bind(listen).await {
            Ok(listener) => return listener,
            Err(error) => {
                tracing::debug!(%error, "hosts cannot be listened for on {} yet", listen.address);
                sleep(BIND_AGAIN).await;
            }
        }
    }
}

/// Another listener for hosts, when the place of the first one is free again: then the mesh
/// was set up anew, and nobody reaches the old one.
async fn bound_anew(listen: &HostListen) -> TcpListener {
    loop {
        sleep(BIND_ANEW).await;
        if let Ok(listener) = bind(listen).await {
            return listener;
        }
    }
}

async fn bind(listen: &HostListen) -> io::Result<TcpListener> {
    let bind = listen.bind.clone();
    let listener = tokio::task::spawn_blocking(move || bind()).await.map_err(io::Error::other)??;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Advances the control clock for as long as hosts can reach this gateway.
async fn beat(store: &Store) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        if let Err(error) = store.clock_beat().await {
            tracing::debug!(%error, "the control clock stands still");
        }
    }
}
