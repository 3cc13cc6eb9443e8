//! What runs jobs: one interface, two ways.

pub mod docker;
pub mod simulated;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use nave_domain::{LeaseId, Millis, host, job::Egress};
use nave_sdk::wire::host::{Order, Stream};

use crate::{
    archive::Archive, config::Prover, core::Observed, inspect::Containers, routes::Routes, share::Over,
};

/// What runs jobs. The same core and the same shell drive both.
#[derive(Debug)]
pub enum Runtime {
    /// A Docker Engine.
    Docker(Box<docker::Docker>),
    /// Nothing: commands are acted out, never executed.
    Simulated(simulated::Simulated),
}

/// Why a command did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The host could not prepare or start it.
    #[error("{0}")]
    Host(String),
    /// The container was ready and the command could not be executed in it: it
    /// is not there or is no program. That is the job's end, not the host's fault.
    #[error("{said}")]
    Command {
        /// 126 or 127, as a shell would say.
        code: i32,
        /// What was wrong, for the job's standard error.
        said: String,
    },
}

/// Output of a command, from its first byte, the streams interleaved as written.
pub type Logs = BoxStream<'static, anyhow::Result<(Stream, Bytes)>>;

macro_rules! either {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self {
            Self::Docker($inner) => $call,
            Self::Simulated($inner) => $call,
        }
    };
}

impl Runtime {
    /// Every lease of this host that has a container, by id.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn observe(&self) -> anyhow::Result<BTreeMap<LeaseId, Observed>> {
        either!(self, inner => inner.observe().await)
    }

    /// Prepares and starts a lease. May be cut off at any point; [`Self::remove`] clears up.
    ///
    /// # Errors
    /// [`StartError`], which ends the lease.
    pub async fn start(&self, lease: LeaseId, order: &Order) -> Result<(), StartError> {
        either!(self, inner => inner.start(lease, order).await)
    }

    /// Ends a command with SIGTERM and, after `grace`, SIGKILL. Ended commands stay ended.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn stop(&self, lease: LeaseId, grace: Millis) -> anyhow::Result<()> {
        either!(self, inner => inner.stop(lease, grace).await)
    }

    /// Removes everything of a lease that does not run, as often as it is called.
    ///
    /// # Errors
    /// When it runs or something could not be removed.
    pub async fn remove(&self, lease: LeaseId) -> anyhow::Result<()> {
        either!(self, inner => inner.remove(lease).await)
    }

    /// Removes what is left of leases that are not `known`.
    ///
    /// # Errors
    /// When something could not be removed.
    pub async fn reap(&self, known: &BTreeSet<LeaseId>) -> anyhow::Result<()> {
        either!(self, inner => inner.reap(known).await)
    }

    /// Some streams of the output of a command; with `follow` until it ends.
    #[must_use]
    pub fn logs(&self, lease: LeaseId, follow: bool, streams: &[Stream]) -> Logs {
        either!(self, inner => inner.logs(lease, follow, streams))
    }

    /// Packs the result files of an ended command; `None` where there are none.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn collect(&self, lease: LeaseId) -> anyhow::Result<Option<Archive>> {
        either!(self, inner => inner.collect(lease).await)
    }

    /// Waits until a container has started or ended, or may have.
    pub async fn changed(&self) {
        either!(self, inner => inner.changed().await);
    }

    /// The leases that were seen to hold more memory than their share of a device has.
    #[must_use]
    pub fn over(&self) -> BTreeMap<LeaseId, Over> {
        either!(self, inner => inner.over())
    }

    /// The leases that have lost what they compute: what gave them their share of a device ended before they did.
    #[must_use]
    pub fn lost(&self) -> BTreeSet<LeaseId> {
        match self {
            Self::Docker(docker) => docker.lost(),
            Self::Simulated(_) => BTreeSet::new(),
        }
    }

    /// Whether devices can be shared with limits that hold, and shall.
    #[must_use]
    pub fn shares_devices(&self) -> bool {
        match self {
            Self::Docker(docker) => docker.shares_devices(),
            Self::Simulated(_) => false,
        }
    }

    /// How an inventory names this runtime.
    #[must_use]
    pub fn kind(&self) -> host::Runtime {
        match self {
            Self::Docker(docker) => host::Runtime::Docker { version: docker.version().to_owned() },
            Self::Simulated(_) => host::Runtime::Simulated,
        }
    }

    /// Lets leases of groups reach one another as these routes say, and no others.
    ///
    /// # Errors
    /// When it could not be arranged; the same again tries again.
    pub async fn route(&self, routes: &Routes) -> anyhow::Result<()> {
        match self {
            Self::Docker(docker) => docker.route(routes).await,
            // What is acted out has no network, and its output says so.
            Self::Simulated(_) => Ok(()),
        }
    }

    /// What is found of the engine, with containers that are run to see whether they do and whether they see these
    /// devices, at which a prover looks from inside.
    pub async fn inspect(&self, prover: &Prover, devices: &[String]) -> Containers {
        match self {
            Self::Docker(docker) => docker.inspect(prover, devices).await,
            Self::Simulated(_) => Containers::none(),
        }
    }

    /// The egress policies it can enforce now.
    pub async fn egress(&self) -> Vec<Egress> {
        match self {
            Self::Docker(docker) => docker.egress().await,
            Self::Simulated(_) => vec![Egress::Public, Egress::None],
        }
    }
}
