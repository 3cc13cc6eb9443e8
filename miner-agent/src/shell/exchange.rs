//! Two tasks that talk to the control plane: one polls for the spec, one reports.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use nave_crash_point::crash_point;
use nave_domain::{ChallengeId, LeaseId, Millis, host::Inventory};
use nave_sdk::wire::{
    host::{HostReport, LeaseReport, PROTOCOL},
    proof::{Digest, ProofReport},
    sign::sha256,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tracing::Instrument as _;

use super::Event;
use crate::{
    backoff::Backoff,
    clock,
    endpoint::{CallError, ControlPlane, Wanted},
    link::Link,
    xids::Xids,
};

/// Time between reports before the first spec has said.
const REPORT: Millis = Millis(1_000);
/// Pause after a spec of another protocol, and while this host is not known.
const STRANGE: Duration = Duration::from_secs(30);

/// What the next report says.
#[derive(Debug, Clone)]
pub(super) struct Bulletin {
    pub(super) generation: u64,
    pub(super) inventory: Inventory,
    pub(super) leases: BTreeMap<LeaseId, LeaseReport>,
    pub(super) proofs: BTreeMap<ChallengeId, ProofReport>,
    pub(super) report: Millis,
}

impl Bulletin {
    pub(super) fn new(inventory: Inventory) -> Self {
        Self { generation: 0, inventory, leases: BTreeMap::new(), proofs: BTreeMap::new(), report: REPORT }
    }
}

/// What reports say beside the bulletin.
pub(super) struct Said {
    /// A hash of what the kernel calls this boot.
    pub(super) boot: Digest,
    /// Errors of GPUs.
    pub(super) xids: Xids,
}

impl Said {
    /// On a machine whose kernel calls this boot so.
    pub(super) fn new(boot: &str) -> Self {
        Self { boot: Digest(sha256(boot.trim().as_bytes()).0), xids: Xids::default() }
    }
}

/// The two tasks; they end with it.
pub(super) struct Exchange {
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Exchange {
    pub(super) fn spawn(
        session: u64,
        plane: Arc<ControlPlane>,
        link: Option<Arc<Link>>,
        news: watch::Receiver<Bulletin>,
        said: Said,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let anew = Arc::new(Notify::new());
        let poller = tokio::spawn(poll(plane.clone(), anew.clone(), events.clone()).in_current_span());
        let reporter = Reporter { plane, link, news, said, events, anew, session, sequence: 0 };
        let reporter = tokio::spawn(reporter.run().in_current_span());
        Self { tasks: [poller, reporter] }
    }
}

/// Polls for the spec. A new process asks for any generation first, and so does
/// one that is told to begin `anew`: the generation it remembers may come from a
/// control plane that has since begun anew itself.
async fn poll(plane: Arc<ControlPlane>, anew: Arc<Notify>, events: mpsc::UnboundedSender<Event>) {
    let (mut backoff, mut after) = (Backoff::default(), 0);
    loop {
        let answer = tokio::select! {
            answer = plane.spec(after) => answer,
            () = anew.notified() => {
                after = 0;
                continue;
            }
        };
        match answer {
            Ok(Some(Wanted::Spec(spec))) => {
                backoff.reset();
                after = spec.generation;
                tracing::debug!(generation = after, leases = spec.leases.len(), "a new spec");
                let _ = events.send(Event::Spec(spec));
            }
            Ok(Some(Wanted::OtherProtocol(protocol))) => {
                tracing::error!(protocol, "the control plane speaks another protocol; update the agent");
                tokio::time::sleep(STRANGE).await;
            }
            Ok(None) => backoff.reset(),
            Err(error) => fail(&events, &error, "fetch the spec", &mut backoff).await,
        }
    }
}

struct Reporter {
    plane: Arc<ControlPlane>,
    link: Option<Arc<Link>>,
    news: watch::Receiver<Bulletin>,
    said: Said,
    events: mpsc::UnboundedSender<Event>,
    anew: Arc<Notify>,
    session: u64,
    sequence: u64,
}

impl Reporter {
    /// Reports at once when something changed, else as often as the spec says.
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let bulletin = self.news.borrow_and_update().clone();
            let rest = Duration::from_millis(u64::try_from(bulletin.report.0).unwrap_or(0).max(10));
            if let Err(error) = self.report(bulletin).await {
                fail(&self.events, &error, "report", &mut backoff).await;
                continue;
            }
            backoff.reset();
            tokio::select! {
                changed = self.news.changed() => if changed.is_err() { return },
                () = self.said.xids.come() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    async fn report(&mut self, bulletin: Bulletin) -> Result<(), CallError> {
        self.sequence += 1;
        let generation = bulletin.generation;
        let mesh_key_next = self.link.as_ref().and_then(|link| link.next_key());
        let xids = self.said.xids.untold(&bulletin.inventory.devices);
        let report = HostReport {
            protocol: PROTOCOL,
            generation,
            sequence: self.sequence,
            session: self.session,
            inventory: bulletin.inventory,
            mesh_key_next,
            proofs: bulletin.proofs,
            boot: Some(self.said.boot),
            xids,
            leases: bulletin.leases,
        };
        // The control plane was there after this moment; how long after, nobody knows.
        let sent = clock::now();
        let ack = self.plane.report(&report).await?;
        self.said.xids.told(&report.xids);
        if ack.generation < generation {
            self.anew.notify_one();
        }
        if let (Some(link), Some(key)) = (&self.link, mesh_key_next) {
            crash_point!("agent.rotate.after_ack");
            link.told(key);
        }
        let _ = self.events.send(Event::Heard(sent, ack.generation));
        Ok(())
    }
}

/// Says what did not work and waits before the next try. A host that is not known
/// asks rarely; that it is not known is said where it is taken in.
async fn fail(events: &mpsc::UnboundedSender<Event>, error: &CallError, what: &str, backoff: &mut Backoff) {
    match error {
        CallError::Away(source) => {
            tracing::info!(reason = format!("{source:#}"), "could not {what}; trying again");
        }
        CallError::Refused { .. } => tracing::warn!(%error, "could not {what}; trying again"),
        CallError::Unknown => {
            let _ = events.send(Event::Dismissed);
            return tokio::time::sleep(STRANGE).await;
        }
    }
    backoff.wait().await;
}
