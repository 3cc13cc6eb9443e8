//! Announcements of changes.
//!
//! An announcement says only that something may have changed; it can come without
//! a change and a change can come without it.

use std::time::Duration;

use nave_domain::{HostId, JobId, QuoteId};
use sqlx::{PgConnection, postgres::PgListener};
use tokio::sync::broadcast;

use crate::{Result, Store};

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// The queue, the hosts or their free capacity.
    Supply,
    /// A job's state, attempts or logs.
    Job(JobId),
    /// A host's spec.
    Host(HostId),
    /// The answer to a wish for a quote.
    Quote(QuoteId),
    /// Who is in the mesh, or with which key.
    Mesh,
    /// What is being tested of hosts.
    Challenges,
    /// Anything: announcements may have been missed.
    Unknown,
}

/// Hands announcements to everyone who waits in this process.
#[derive(Debug, Clone)]
pub struct Listener {
    sender: broadcast::Sender<Changes>,
}

const CHANNEL: &str = "nave";

impl Listener {
    /// Announcements from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Changes> {
        self.sender.subscribe()
    }
}

impl Store {
    /// Starts listening; ends with the process. While the database is away it keeps
    /// trying, and announces [`Changes::Unknown`] when it is back.
    #[must_use]
    pub fn listen(&self) -> Listener {
        let (sender, _) = broadcast::channel(1024);
        let listener = Listener { sender: sender.clone() };
        let url = self.url.clone();
        tokio::spawn(async move {
            loop {
                if let Err(error) = relay(&url, &sender).await {
                    tracing::debug!(%error, "listening for changes was interrupted");
                }
                drop(sender.send(Changes::Unknown));
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        listener
    }
}

async fn relay(url: &str, sender: &broadcast::Sender<Changes>) -> std::result::Result<(), sqlx::Error> {
    let mut source = PgListener::connect(url).await?;
    source.listen(CHANNEL).await?;
    drop(sender.send(Changes::Unknown));
    while let Some(notification) = source.try_recv().await? {
        drop(sender.send(parse(notification.payload())));
    }
    Ok(())
}

fn parse(payload: &str) -> Changes {
    match payload {
        "supply" => return Changes::Supply,
        "mesh" => return Changes::Mesh,
        "challenges" => return Changes::Challenges,
        _ => {}
    }
    let job = payload.parse().map(Changes::Job);
    let host = || payload.parse().map(Changes::Host);
    let quote = || payload.parse().map(Changes::Quote);
    job.or_else(|_| host()).or_else(|_| quote()).unwrap_or(Changes::Unknown)
}

/// Announces within a transaction; it is sent when that commits.
pub(crate) async fn announce(tx: &mut PgConnection, change: Changes) -> Result<()> {
    announce_all(tx, std::iter::once(change)).await
}

/// Announces many changes as [`announce`] does one.
pub(crate) async fn announce_all(
    tx: &mut PgConnection,
    changes: impl Iterator<Item = Changes>,
) -> Result<()> {
    let payload = |change| match change {
        Changes::Supply => Some("supply".to_owned()),
        Changes::Mesh => Some("mesh".to_owned()),
        Changes::Challenges => Some("challenges".to_owned()),
        Changes::Job(job) => Some(job.to_string()),
        Changes::Host(host) => Some(host.to_string()),
        Changes::Quote(quote) => Some(quote.to_string()),
        Changes::Unknown => None,
    };
    let payloads: Vec<String> = changes.filter_map(payload).collect();
    sqlx::query!("select pg_notify($1, payload) from unnest($2::text[]) payload", CHANNEL, &payloads)
        .execute(tx)
        .await?;
    Ok(())
}

/// As [`announce`], for the specs of several hosts.
pub(crate) async fn announce_each(tx: &mut PgConnection, hosts: &[HostId]) -> Result<()> {
    let payloads: Vec<String> = hosts.iter().map(HostId::to_string).collect();
    sqlx::query!("select pg_notify($1, payload) from unnest($2::text[]) payload", CHANNEL, &payloads)
        .execute(tx)
        .await?;
    Ok(())
}
