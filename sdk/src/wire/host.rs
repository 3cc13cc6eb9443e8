//! The host protocol: one document down, one up, and byte channels beside them.
//!
//! | Call | Meaning |
//! |---|---|
//! | `GET /host/v1/spec?after=G&wait_ms=W` | the [`HostSpec`], as soon as its generation exceeds `G`; 204 when `W` passes first |
//! | `POST /host/v1/report` | a [`HostReport`]; answered with a [`ReportAck`] |
//! | `POST /host/v1/leases/{lease}/logs/{stream}?offset=O` | bytes of a log from offset `O`; answered with a [`LogAck`] |
//! | `PUT /host/v1/blobs/{sha256}` | bytes whose SHA-256 is the name; storing them again is a no-op |
//! | `GET /host/v1/verdicts` | the newest [`HostVerdict`](super::verdict::HostVerdict)s on the host |
//! | `GET /host/v1/earnings` | what the host's miner has [earned](super::settlement::Earnings) in the newest epochs |
//! | `GET /host/v1/releases/{version}/{target}` | the program of a release |
//!
//! It is spoken inside the mesh only, and the address a call comes from says which host it is.
//!
//! The agent reconciles what it has with the spec. There are no commands, so
//! none can be lost: an order is there until its lease is closed.

use std::{collections::BTreeMap, net::Ipv6Addr};

use nave_domain::{
    Bytes, ChallengeId, HostId, JobId, LeaseId, MilliCpu, Millis,
    fraction::Share,
    host::{HostState, Inventory},
    job::Egress,
    lease::StopReason,
    mesh::MeshKey,
};
use nave_proof::{Challenge, Digest, Nonce, ProofReport};
use serde::{Deserialize, Serialize};

use super::{enrol::StateReason, sign::SignedRelease};

/// The version of this protocol; another one is refused by name.
pub const PROTOCOL: u16 = 3;
/// Largest report or spec, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// Most answers in one report; a host is given fewer challenges at once.
pub const PROOFS_MAX: usize = 16;
/// Most errors of drivers in one report.
pub const XIDS_MAX: usize = 32;
/// Largest piece of a log in one call, in bytes.
pub const LOG_CHUNK_BYTES_MAX: usize = 256 << 10;
/// Most that is kept of one stream of one lease, in bytes; the rest is dropped and said so.
pub const LOG_BYTES_MAX: u64 = 16 << 20;
/// Largest blob, in bytes.
pub const BLOB_BYTES_MAX: usize = 32 << 20;

/// What the control plane wants of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSpec {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// Grows with every change.
    pub generation: u64,
    /// Whom it is for.
    pub host: HostId,
    /// Where the host stands.
    pub state: HostState,
    /// Why it stands there, where that needs saying; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<StateReason>,
    /// Time after which a host that hears nothing ends its jobs.
    pub fence_ms: Millis,
    /// Longest time between two reports.
    pub report_ms: Millis,
    /// How the host is part of the mesh.
    pub mesh: MeshSpec,
    /// What it is asked to prove, by id; its answers belong into its reports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub challenges: BTreeMap<ChallengeId, Challenge>,
    /// What it gives to other hosts that are tested, by their challenges, for as long as those are open.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub serve: BTreeMap<ChallengeId, Serve>,
    /// The agent it should run; the release key has signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<SignedRelease>,
    /// Every open lease, by id.
    pub leases: BTreeMap<LeaseId, Order>,
}

/// Bytes that a host gives to one other host, and to nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// What they are made of, together with what the other asks with. Only this host has it.
    pub key: Nonce,
    /// How many there are, in whole chunks of 64 KiB.
    pub bytes: u64,
    /// The TCP port at this host's own address in the mesh.
    pub port: u16,
    /// The other host's address in the mesh.
    pub peer: Ipv6Addr,
}

/// How a host is part of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshSpec {
    /// The WireGuard public key that the hub lets it in with.
    pub key: MeshKey,
    /// The hub's WireGuard public key.
    pub hub_key: MeshKey,
    /// Where the hub's UDP socket can be reached, best first.
    pub hub_endpoints: Vec<String>,
}

/// One lease to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The job it is an attempt of.
    pub job: JobId,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Set when the command must end; why.
    pub stop: Option<StopReason>,
    /// Image reference with its digest.
    pub image: String,
    /// The command as an argument vector.
    pub argv: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// CPU limit.
    pub milli_cpu: MilliCpu,
    /// Memory limit.
    pub memory: Bytes,
    /// Size of the working directory.
    pub disk: Bytes,
    /// UUIDs of the GPUs it gets, or of slices that their hardware separates.
    pub devices: Vec<String>,
    /// Set where it gets a share of its one GPU and not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
    /// Which addresses it may reach.
    pub egress: Egress,
    /// Its address in the mesh, where its job has a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv6Addr>,
    /// The addresses of its group's other open leases, by job: all it may reach in the mesh.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<JobId, Ipv6Addr>,
}

/// What a host observes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostReport {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// The newest spec generation the host has acted on; 0 before the first.
    pub generation: u64,
    /// Grows with every report of one agent process, so that a late one is not believed.
    pub sequence: u64,
    /// Larger with every agent process of a host: what earlier ones said and comes late is not
    /// believed.
    pub session: u64,
    /// What the host has.
    pub inventory: Inventory,
    /// The key that the host is about to use in the mesh instead of its present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_key_next: Option<MeshKey>,
    /// Its answers to the newest step of each of its challenges, by their ids; at most [`PROOFS_MAX`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub proofs: BTreeMap<ChallengeId, ProofReport>,
    /// A hash of what the machine's kernel calls this boot: another one means that the machine has restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Digest>,
    /// Errors that the drivers of its GPUs reported since the last report that was answered; at most [`XIDS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xids: Vec<XidReport>,
    /// Every lease the host knows, by id.
    pub leases: BTreeMap<LeaseId, LeaseReport>,
}

/// An error that the driver of a GPU reported.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XidReport {
    /// Its number in the vendor's catalogue.
    pub code: u32,
    /// The UUID of the GPU.
    pub device: String,
}

impl HostReport {
    /// Refuses what no honest host reports.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn check(&self) -> Result<(), String> {
        self.inventory.check().map_err(|problem| format!("inventory.{problem}"))?;
        if self.proofs.len() > PROOFS_MAX {
            return Err(format!("proofs: more than {PROOFS_MAX}"));
        }
        if self.proofs.iter().any(|(id, proof)| *id != proof.challenge) {
            return Err("proofs: one stands under the id of another challenge".into());
        }
        if self.xids.len() > XIDS_MAX {
            return Err(format!("xids: more than {XIDS_MAX}"));
        }
        let is_listed =
            |xid: &XidReport| self.inventory.devices.iter().any(|device| device.uuid == xid.device);
        if !self.xids.iter().all(is_listed) {
            return Err("xids: one is of a GPU that the inventory does not list".into());
        }
        Ok(())
    }
}

/// What a host observes of one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase", deny_unknown_fields)]
pub enum LeaseReport {
    /// The image or the container is being prepared.
    Preparing,
    /// The command runs.
    Running,
    /// It ran when it was last seen, and the engine does not answer now. Nothing follows
    /// from it: the lease is not lost, and this time is not metered.
    Unseen,
    /// The command has ended; logs and results are on their way.
    Exited {
        /// How it ended.
        exit: Exit,
    },
    /// Everything has been delivered.
    Finished {
        /// How it ended.
        exit: Exit,
        /// The archive of the result files, where there are any.
        result: Option<ResultRef>,
    },
}

/// How a command ended, as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Exit {
    /// It exited by itself.
    Code {
        /// Its exit code; 128 + n for a signal n.
        code: i32,
    },
    /// The kernel ended it for its memory limit.
    OutOfMemory,
    /// The agent ended it because it used more memory of its share of a GPU than it had asked for.
    OutOfGpuMemory {
        /// What it had asked for.
        asked: Bytes,
        /// What it was seen to use.
        used: Bytes,
    },
    /// It was killed, by neither the agent nor the kernel's memory limit, or exited with 137.
    Killed,
    /// The agent ended it because the spec said so.
    Stopped,
    /// The agent ended it because it had not heard from the control plane in time.
    Fenced,
    /// What it ran in or computed with ended under it, on the host: what it did is worth nothing.
    Lost,
    /// It never started.
    StartFailed {
        /// One sentence; at most [`DETAIL_BYTES_MAX`] bytes.
        detail: String,
    },
}

/// Longest detail of a failure, in bytes.
pub const DETAIL_BYTES_MAX: usize = 1024;

/// A result archive: a gzip-free tar of the files in the job's output directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultRef {
    /// SHA-256 of the archive, 64 hexadecimal digits.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
    /// Set when files were left out because the archive would exceed [`BLOB_BYTES_MAX`], or there were too many.
    pub truncated: bool,
}

/// The answer to a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAck {
    /// The newest spec generation; fetch the spec when it exceeds yours.
    pub generation: u64,
}

/// The answer to a piece of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogAck {
    /// Bytes of this stream stored so far: send from here on.
    pub next_offset: u64,
    /// Set when nothing more of this stream is kept.
    pub full: bool,
}

/// One of a command's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The name in paths, JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_spec_needs_neither_reason_nor_challenges_and_is_the_same_as_before_without() {
        let key = MeshKey::new([1; 32]).expect("a key");
        let before = json!({
            "protocol": PROTOCOL, "generation": 1, "host": format!("host_{:032x}", 1), "state": "ready",
            "fence_ms": 1, "report_ms": 1, "leases": {},
            "mesh": { "key": key, "hub_key": key, "hub_endpoints": [] },
        });
        let spec: HostSpec = serde_json::from_value(before.clone()).expect("a spec");
        assert_eq!((&spec.reason, spec.challenges.len()), (&None, 0));
        assert_eq!(serde_json::to_value(&spec).expect("JSON"), before);
    }
}
