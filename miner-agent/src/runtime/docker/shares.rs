//! Leases that have a share of a device: their daemons, and the watch over what they hold.
//!
//! Where no lease has a share, nothing here does anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nave_domain::LeaseId;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use crate::share::{
    self, Held, Over, Place, Terms,
    mps::{Daemons, Means},
    watch::Watch,
};

/// Time between two looks at whether the daemons are there.
const TEND: Duration = Duration::from_secs(5);
/// Pause after a prover could not watch.
const AGAIN: Duration = Duration::from_secs(1);

/// The leases of a host that have shares.
#[derive(Debug)]
pub struct Shares {
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl Drop for Shares {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Inner {
    daemons: Daemons,
    /// The engine's identifiers of containers, with their leases.
    containers: Mutex<BTreeMap<String, LeaseId>>,
    /// Leases that were seen to hold more than their share.
    over: Mutex<BTreeMap<LeaseId, Over>>,
    /// Woken when a lease has got a share.
    joined: Notify,
    /// Wakes the agent when a lease holds more than its share, or has lost it.
    changed: Arc<Notify>,
}

impl Shares {
    /// Goes on with what an earlier agent has left below `data`.
    #[must_use]
    pub fn open(data: &Path, means: Means, changed: Arc<Notify>) -> Self {
        let inner = Arc::new(Inner {
            daemons: Daemons::open(data, means),
            containers: Mutex::default(),
            over: Mutex::default(),
            joined: Notify::new(),
            changed,
        });
        Self { task: tokio::spawn(watch(inner.clone())), inner }
    }

    /// Whether this host can share its devices, and shall.
    #[must_use]
    pub fn are_offered(&self) -> bool {
        self.inner.daemons.means().are_offered()
    }

    /// Gives a lease its share of a device.
    ///
    /// # Errors
    /// As [`Daemons::join`].
    pub async fn join(&self, lease: LeaseId, terms: &Terms) -> anyhow::Result<Place> {
        let joined = self.inner.daemons.join(lease, terms).await;
        self.inner.joined.notify_one();
        joined
    }

    /// Waits until nobody shares these devices.
    ///
    /// # Errors
    /// As [`Daemons::vacate`].
    pub async fn vacate(&self, devices: &[String]) -> anyhow::Result<()> {
        self.inner.daemons.vacate(devices).await
    }

    /// Takes the share of a lease back, where it has one.
    ///
    /// # Errors
    /// As [`Daemons::leave`].
    pub async fn leave(&self, lease: LeaseId) -> anyhow::Result<()> {
        let left = self.inner.daemons.leave(lease).await;
        lock(&self.inner.over).remove(&lease);
        left
    }

    /// Takes back the shares of all leases but these.
    ///
    /// # Errors
    /// As [`Daemons::settle`].
    pub async fn settle(&self, known: &BTreeSet<LeaseId>) -> anyhow::Result<()> {
        self.inner.daemons.settle(known).await
    }

    /// Takes in which containers there are.
    pub fn learn(&self, containers: BTreeMap<String, LeaseId>) {
        *lock(&self.inner.containers) = containers;
    }

    /// The leases that were seen to hold more than their share.
    #[must_use]
    pub fn over(&self) -> BTreeMap<LeaseId, Over> {
        lock(&self.inner.over).clone()
    }

    /// The leases whose daemon ended before they did.
    #[must_use]
    pub fn lost(&self) -> BTreeSet<LeaseId> {
        self.inner.daemons.lost()
    }

    /// Processes of the daemons.
    pub async fn processes(&self) -> BTreeSet<u32> {
        self.inner.daemons.processes().await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the daemons and watches what leases hold, for as long as any has a share.
async fn watch(inner: Arc<Inner>) {
    loop {
        if inner.daemons.records().await.is_empty() {
            inner.joined.notified().await;
        }
        inner.tend().await;
        if let Err(error) = inner.judge_until_others().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "nobody sees what shares of devices hold; looking again"
            );
            sleep(AGAIN).await;
        }
    }
}

impl Inner {
    async fn tend(&self) {
        if let Err(error) = self.daemons.tend().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "a device is not shared as it should be; trying again"
            );
        }
        if !self.daemons.lost().is_empty() {
            self.changed.notify_one();
        }
    }

    /// Judges what leases hold for as long as it is of these devices.
    async fn judge_until_others(&self) -> anyhow::Result<()> {
        let devices = self.devices().await;
        let means = self.daemons.means();
        let mut watch = Watch::begin(&means.prover, &devices, means.silence_max)?;
        let mut tended = Instant::now();
        while self.devices().await == devices {
            // A prover that is silent for long is no reason not to look at the daemons.
            match timeout_at(tended + TEND, watch.next()).await {
                Ok(held) => self.judge(&held?).await,
                Err(_) => {
                    self.tend().await;
                    tended = Instant::now();
                }
            }
        }
        Ok(())
    }

    /// The devices that are shared.
    async fn devices(&self) -> BTreeSet<String> {
        self.daemons.records().await.into_iter().map(|record| record.terms.device).collect()
    }

    async fn judge(&self, held: &[Held]) {
        let records = self.daemons.records().await;
        let share = |record: &share::Record| {
            let (device, vram) = (record.terms.device.clone(), record.terms.fraction.vram);
            record.leases.iter().map(move |lease| (*lease, (device.clone(), vram))).collect::<Vec<_>>()
        };
        let shares: BTreeMap<LeaseId, _> = records.iter().flat_map(share).collect();
        let found = {
            let containers = lock(&self.containers);
            let cgroup = |pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            share::over(held, &shares, |pid| share::lease_in(&cgroup(pid), &containers))
        };
        let mut over = lock(&self.over);
        let before = over.len();
        for (lease, found) in found {
            over.entry(lease).or_insert(found);
        }
        if over.len() > before {
            self.changed.notify_one();
        }
    }
}
