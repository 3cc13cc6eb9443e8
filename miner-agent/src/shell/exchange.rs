//! Two tasks that talk to the control plane: one polls for the spec, one reports.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use nave_domain::{LeaseId, Millis, host::Inventory};
use nave_sdk::wire::host::{HostReport, LeaseReport, PROTOCOL};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tracing::Instrument as _;

use super::Event;
use crate::{
    backoff::Backoff,
    clock,
    endpoint::{CallError, ControlPlane},
};

/// Time between reports before the first spec has said.
const REPORT: Millis = Millis(1_000);
/// Pause after a spec of another protocol.
const STRANGE: Duration = Duration::from_secs(30);

/// What the next report says.
#[derive(Debug, Clone)]
pub(super) struct Bulletin {
    pub(super) generation: u64,
    pub(super) inventory: Inventory,
    pub(super) leases: BTreeMap<LeaseId, LeaseReport>,
    pub(super) report: Millis,
}

impl Bulletin {
    pub(super) fn new(inventory: Inventory) -> Self {
        Self { generation: 0, inventory, leases: BTreeMap::new(), report: REPORT }
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
        plane: Arc<ControlPlane>,
        news: watch::Receiver<Bulletin>,
        events: mpsc::UnboundedSender<Event>,
    ) -> anyhow::Result<Self> {
        let session = getrandom::u64().context("draw a session number")?;
        let anew = Arc::new(Notify::new());
        let poller = tokio::spawn(poll(plane.clone(), anew.clone(), events.clone()).in_current_span());
        let reporter = Reporter { plane, news, events, anew, session, sequence: 0 };
        let reporter = tokio::spawn(reporter.run().in_current_span());
        Ok(Self { tasks: [poller, reporter] })
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
            Ok(Some(spec)) if spec.protocol == PROTOCOL => {
                backoff.reset();
                after = spec.generation;
                tracing::debug!(generation = after, leases = spec.leases.len(), "a new spec");
                let _ = events.send(Event::Spec(Box::new(spec)));
            }
            Ok(Some(spec)) => {
                tracing::error!(
                    protocol = spec.protocol,
                    "the control plane speaks another protocol; update the agent"
                );
                tokio::time::sleep(STRANGE).await;
            }
            Ok(None) => backoff.reset(),
            Err(error) => {
                say(&error, "fetch the spec");
                backoff.wait().await;
            }
        }
    }
}

struct Reporter {
    plane: Arc<ControlPlane>,
    news: watch::Receiver<Bulletin>,
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
                say(&error, "report");
                backoff.wait().await;
                continue;
            }
            backoff.reset();
            tokio::select! {
                changed = self.news.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    async fn report(&mut self, bulletin: Bulletin) -> Result<(), CallError> {
        self.sequence += 1;
        let generation = bulletin.generation;
        let report = HostReport {
            protocol: PROTOCOL,
            generation,
            sequence: self.sequence,
            session: self.session,
            inventory: bulletin.inventory,
            mesh_key_next: None,
            proof: None,
            leases: bulletin.leases,
        };
        // The control plane was there after this moment; how long after, nobody knows.
        let sent = clock::now();
        let ack = self.plane.report(&report).await?;
        if ack.generation < generation {
            self.anew.notify_one();
        }
        let _ = self.events.send(Event::Heard(sent));
        Ok(())
    }
}

fn say(error: &CallError, what: &str) {
    match error {
        CallError::Away(source) => {
            tracing::info!(reason = format!("{source:#}"), "could not {what}; trying again")
        }
        CallError::Refused { .. } => tracing::warn!(%error, "could not {what}; trying again"),
    }
}
