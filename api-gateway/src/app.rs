//! What every handler shares, and how handlers wait.

use std::{
    collections::HashMap,
    future::pending,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use nave_domain::{HostId, KeyId};
use nave_store::{Changes, Listener, Store};
use tokio::{
    sync::{
        Semaphore,
        broadcast::{self, error::RecvError},
        watch,
    },
    time::timeout,
};

use crate::{
    config::Config,
    host::releases::Programs,
    registry::Registry,
    throttle::{self, Throttle},
    turns::Turns,
};

/// Blobs in memory at once, of at most 32 MiB each.
const BLOBS_MAX: usize = 4;
/// Openings of challenges in memory at once, of at most 16 MiB each.
const OPENINGS_MAX: usize = 8;
/// Openings that go out at once.
const OPENINGS_OUT_MAX: usize = 2;

/// What every handler shares.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) config: Arc<Config>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) throttle: Arc<Throttle<KeyId>>,
    /// Addresses that sign their calls.
    pub(crate) signers: Arc<Throttle<IpAddr>>,
    /// Addresses that look at what is open to everyone.
    pub(crate) passers: Arc<Throttle<IpAddr>>,
    /// Addresses that enrol hosts.
    pub(crate) joiners: Arc<Throttle<IpAddr>>,
    pub(crate) turns: Arc<Turns>,
    /// One permit for each blob that may come in at a time.
    pub(crate) uploads: Arc<Semaphore>,
    /// One permit for each blob that may come in from a host that runs nothing: whoever only
    /// has a challenge does not keep results from their turn.
    pub(crate) openings: Arc<Semaphore>,
    /// Blobs that hosts send now.
    pub(crate) uploading: Arc<Mutex<HashMap<HostId, u32>>>,
    /// One permit for each result that may go out at a time.
    pub(crate) downloads: Arc<Semaphore>,
    /// One permit for each opening that may go out at a time: whoever fetches them needs no key, and
    /// does not keep customers from their results.
    pub(crate) openings_out: Arc<Semaphore>,
    /// Programs that go out now.
    pub(crate) programs: Arc<Programs>,
    changes: Listener,
    stopping: watch::Receiver<bool>,
}

impl App {
    pub(crate) fn new(config: Config, store: Store, stopping: watch::Receiver<bool>) -> Self {
        Self {
            registry: Arc::new(Registry::new(&config.registries, &config.insecure_registries)),
            config: Arc::new(config),
            throttle: Arc::new(Throttle::new(throttle::CALLS)),
            signers: Arc::new(Throttle::new(throttle::CALLS)),
            passers: Arc::new(Throttle::new(throttle::LOOKS)),
            joiners: Arc::new(Throttle::new(throttle::ENROLMENTS)),
            turns: Arc::default(),
            uploads: Arc::new(Semaphore::new(BLOBS_MAX)),
            openings: Arc::new(Semaphore::new(OPENINGS_MAX)),
            uploading: Arc::default(),
            downloads: Arc::new(Semaphore::new(BLOBS_MAX)),
            openings_out: Arc::new(Semaphore::new(OPENINGS_OUT_MAX)),
            programs: Arc::default(),
            changes: store.listen(),
            store,
            stopping,
        }
    }

    /// Announcements from now on. Take it before reading what is waited for, so that no
    /// change falls between the two.
    pub(crate) fn watch(&self) -> Watch {
        Watch { changes: self.changes.subscribe(), stopping: self.stopping.clone() }
    }

    /// Whether the gateway shuts down: whoever waits should answer with what there is.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }
}

/// A wait for a change.
pub(crate) struct Watch {
    changes: broadcast::Receiver<Changes>,
    stopping: watch::Receiver<bool>,
}

impl Watch {
    /// Returns when `change` may have happened, at the latest after `longest` or when the
    /// gateway shuts down. Callers look for themselves: an announcement is only a hint.
    pub(crate) async fn changed(mut self, change: Changes, longest: Duration) {
        let announced = announced(&mut self.changes, change);
        tokio::select! {
            _ = timeout(longest, announced) => {}
            _ = self.stopping.wait_for(|stopping| *stopping) => {}
        }
    }
}

async fn announced(changes: &mut broadcast::Receiver<Changes>, awaited: Changes) {
    loop {
        match changes.recv().await {
            Ok(change) if change != awaited && change != Changes::Unknown => {}
            Ok(_) | Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => pending().await,
        }
    }
}
