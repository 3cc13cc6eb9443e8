//! Fetches what the spec says should run instead, and watches over a program that is new.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nave_sdk::wire::{
    keys::PublicKey,
    sign::{Release, SignedRelease},
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::Event;
use crate::{
    endpoint::ControlPlane,
    status::Fetched,
    upgrade::{self, Record, Standing, Store},
};

/// Pause after a program that could not be fetched or was not what was signed.
const AGAIN: Duration = Duration::from_secs(60);

/// What is known about other programs.
pub(super) struct Upgrade {
    store: Store,
    key: Option<PublicKey>,
    record: Option<Record>,
    begun: Instant,
    fetching: Option<(SignedRelease, JoinHandle<()>)>,
    ready: Option<SignedRelease>,
}

impl Drop for Upgrade {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.fetching {
            task.abort();
        }
    }
}

impl Upgrade {
    pub(super) fn new(data: &Path, key: Option<PublicKey>, record: Option<Record>) -> Self {
        let store = Store::of(data);
        Self { store, key, record, begun: Instant::now(), fetching: None, ready: None }
    }

    /// Takes in what the newest spec offers.
    pub(super) fn want(
        &mut self,
        offer: Option<&SignedRelease>,
        plane: &Arc<ControlPlane>,
        events: &mpsc::UnboundedSender<Event>,
    ) {
        let own = crate::version();
        let wanted =
            offer.filter(|offer| upgrade::is_wanted(offer, self.key.as_ref(), own, self.record.as_ref()));
        let Some(wanted) = wanted else {
            self.stop();
            self.ready = None;
            return;
        };
        let fetched = self.ready.as_ref() == Some(wanted);
        if fetched || self.fetching.as_ref().is_some_and(|(release, _)| release == wanted) {
            return;
        }
        self.stop();
        tracing::info!(version = wanted.release.version, "fetching a newer program");
        let task = fetch(self.store.clone(), wanted.clone(), plane.clone(), events.clone());
        self.fetching = Some((wanted.clone(), tokio::spawn(task)));
    }

    fn stop(&mut self) {
        if let Some((_, task)) = self.fetching.take() {
            task.abort();
        }
    }

    /// The program of a release lies ready, if it is still the one that is wanted.
    pub(super) fn fetched(&mut self, release: SignedRelease) {
        if self.fetching.as_ref().is_some_and(|(wanted, _)| *wanted == release) {
            self.fetching = None;
            self.ready = Some(release);
        }
    }

    /// What is known of the program that was fetched last.
    pub(super) fn known(&self) -> Option<Fetched> {
        let Record { release, standing } = self.record.as_ref()?;
        Some(Fetched { version: release.release.version.clone(), standing: *standing })
    }

    /// What shall take over as soon as nothing is disturbed by it.
    pub(super) fn ready(&self) -> Option<SignedRelease> {
        self.ready.clone()
    }

    /// The control plane has answered: whoever is on trial has passed, and a program
    /// that fell shows by this whether it was to blame.
    pub(super) fn heard(&mut self) {
        let Some(Record { release, standing }) = self.record.clone() else { return };
        let soon = self.begun.elapsed() < upgrade::trial();
        let done = match standing {
            Standing::Trying { .. } => self.note(&release, Standing::Good),
            Standing::Fallen if soon => self.note(&release, Standing::Bad),
            Standing::Fallen => {
                self.record = None;
                self.store.forget()
            }
            Standing::Good | Standing::Bad => return,
        };
        if let Err(error) = done {
            tracing::warn!(error = format!("{error:#}"), "how the new program stands cannot be written");
        }
    }

    fn note(&mut self, release: &SignedRelease, standing: Standing) -> anyhow::Result<()> {
        tracing::info!(version = release.release.version, ?standing, "a new program was tried");
        self.record = Some(Record { release: release.clone(), standing });
        self.store.note(release, standing)
    }

    /// Set when this is a new program that did not reach the control plane in time.
    pub(super) fn fallen(&self) -> Option<SignedRelease> {
        self.on_trial().filter(|_| self.begun.elapsed() >= upgrade::trial()).cloned()
    }

    /// How long nothing has to be decided here.
    pub(super) fn rest(&self) -> Duration {
        match self.on_trial() {
            Some(_) => upgrade::trial().saturating_sub(self.begun.elapsed()),
            None => Duration::MAX,
        }
    }

    fn on_trial(&self) -> Option<&SignedRelease> {
        let record = self.record.as_ref()?;
        matches!(record.standing, Standing::Trying { .. }).then_some(&record.release)
    }
}

/// Fetches until it is there; the caller ends it when it is not wanted any more.
async fn fetch(
    store: Store,
    wanted: SignedRelease,
    plane: Arc<ControlPlane>,
    events: mpsc::UnboundedSender<Event>,
) {
    while let Err(error) = fetch_once(&store, &wanted.release, &plane).await {
        tracing::warn!(error = format!("{error:#}"), "the newer program was not fetched; trying again");
        tokio::time::sleep(AGAIN).await;
    }
    let _ = events.send(Event::Fetched(Box::new(wanted)));
}

async fn fetch_once(store: &Store, release: &Release, plane: &ControlPlane) -> anyhow::Result<()> {
    let answer = plane.release(release).await.context("ask for the newer program")?;
    store.fetch(release, answer).await
}
