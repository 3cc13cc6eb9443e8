//! Acts commands out and says so: nothing is executed.
//!
//! Four environment variables of the job direct the play: `NAVE_SIM_MS` is how
//! long it runs in milliseconds (100), `NAVE_SIM_EXIT` its exit code (0),
//! `NAVE_SIM_OUT` the text of its one result file, `simulated.txt` (none), and
//! `NAVE_SIM_VRAM` the bytes that it holds of its share of a device (none).
//! What runs is written down, so a restarted agent finds it again.
//!
//! A host forges where there is a file `forged.txt` in its directory: that is the result of every job with one then.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder},
    net::Ipv6Addr,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes as Piece;
use futures_util::{StreamExt as _, stream};
use nave_domain::{Bytes, JobId, LeaseId, Millis};
use nave_sdk::wire::host::{Order, Stream};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{Logs, StartError};
use crate::{
    archive::{self, Archive},
    clock,
    core::{Observed, Phase},
    share::{self, Held, Over},
};

/// Exit code of a command that SIGTERM ended.
const TERMINATED: i32 = 128 + 15;

/// The simulated runtime.
#[derive(Debug)]
pub struct Simulated {
    dir: PathBuf,
    plays: Mutex<BTreeMap<LeaseId, Play>>,
    /// When the plays were last observed: what ended since is a change.
    observed: AtomicI64,
    changed: Notify,
}

/// One command that is acted out.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Play {
    job: JobId,
    attempt: u32,
    argv: Vec<String>,
    /// Its address in the mesh, where nobody reaches it.
    #[serde(default)]
    address: Option<Ipv6Addr>,
    result: Option<String>,
    /// Its share of a device in bytes and what it holds of it.
    #[serde(default)]
    vram: Option<(Bytes, u64)>,
    /// When it ends, on the boot clock.
    ends: Millis,
    code: i32,
}

impl Play {
    fn new(order: &Order, now: Millis) -> Self {
        let number = |name: &str| order.env.get(name).and_then(|text| text.parse::<i64>().ok());
        let runs = number("NAVE_SIM_MS").unwrap_or(100).clamp(0, 86_400_000);
        Self {
            job: order.job,
            attempt: order.attempt,
            argv: order.argv.clone(),
            address: order.address,
            result: order.env.get("NAVE_SIM_OUT").cloned(),
            vram: order.share.map(|share| {
                (
                    share.fraction.vram,
                    number("NAVE_SIM_VRAM").and_then(|held| held.try_into().ok()).unwrap_or(0),
                )
            }),
            ends: Millis(now.0.saturating_add(runs)),
            code: number("NAVE_SIM_EXIT").and_then(|code| i32::try_from(code).ok()).unwrap_or(0),
        }
    }

    fn phase(&self, now: Millis) -> Phase {
        if now < self.ends { Phase::Running } else { Phase::Exited { code: self.code, oom: false } }
    }
}

impl Simulated {
    /// Opens the simulated runtime whose state is below `data`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn open(data: &std::path::Path) -> anyhow::Result<Self> {
        let dir = data.join("simulated");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.with_context(|| format!("create {}", dir.display()))?;
        let saved = fs::read(dir.join("plays.json")).ok();
        let plays = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Ok(Self { dir, plays: Mutex::new(plays), observed: AtomicI64::new(0), changed: Notify::new() })
    }

    fn plays(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Play>> {
        self.plays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, plays: &BTreeMap<LeaseId, Play>) -> anyhow::Result<()> {
        let next = self.dir.join("plays.json.next");
        fs::write(&next, serde_json::to_vec(plays)?).context("write the simulated state")?;
        fs::rename(&next, self.dir.join("plays.json")).context("replace the simulated state")
    }

    pub(super) async fn observe(&self) -> anyhow::Result<BTreeMap<LeaseId, Observed>> {
        let now = clock::now();
        self.observed.store(now.0, Ordering::Relaxed);
        let seen = |play: &Play| Observed { job: play.job, attempt: play.attempt, phase: play.phase(now) };
        Ok(self.plays().iter().map(|(lease, play)| (*lease, seen(play))).collect())
    }

    pub(super) async fn start(&self, lease: LeaseId, order: &Order) -> Result<(), StartError> {
        let mut plays = self.plays();
        plays.entry(lease).or_insert_with(|| Play::new(order, clock::now()));
        self.save(&plays).map_err(|error| StartError::Host(format!("{error:#}")))?;
        self.changed.notify_one();
        Ok(())
    }

    pub(super) async fn stop(&self, lease: LeaseId, _grace: Millis) -> anyhow::Result<()> {
        let mut plays = self.plays();
        let now = clock::now();
        if let Some(play) = plays.get_mut(&lease).filter(|play| play.phase(now) == Phase::Running) {
            (play.ends, play.code) = (now, TERMINATED);
        }
        self.save(&plays)
    }

    pub(super) async fn remove(&self, lease: LeaseId) -> anyhow::Result<()> {
        let _ = fs::remove_dir_all(self.dir.join(lease.to_string()));
        let mut plays = self.plays();
        plays.remove(&lease);
        self.save(&plays)
    }

    pub(super) async fn reap(&self, known: &BTreeSet<LeaseId>) -> anyhow::Result<()> {
        let mut plays = self.plays();
        plays.retain(|lease, _| known.contains(lease));
        self.save(&plays)
    }

    /// The leases that would be seen to hold more than their share, if they ran.
    pub(super) fn over(&self) -> BTreeMap<LeaseId, Over> {
        let now = clock::now();
        let plays = self.plays();
        let runs = plays.iter().filter(|(_, play)| play.phase(now) == Phase::Running);
        let with_share: Vec<_> =
            runs.filter_map(|(lease, play)| play.vram.map(|(asked, held)| (*lease, asked, held))).collect();
        let device = String::new;
        let held: Vec<Held> = (0..)
            .zip(&with_share)
            .map(|(pid, (_, _, bytes))| Held { device: device(), pid, bytes: *bytes })
            .collect();
        let shares = with_share.iter().map(|(lease, asked, _)| (*lease, (device(), *asked))).collect();
        let lease_of = |pid: u32| with_share.get(usize::try_from(pid).ok()?).map(|(lease, _, _)| *lease);
        share::over(&held, &shares, lease_of)
    }

    pub(super) fn logs(&self, lease: LeaseId, follow: bool, streams: &[Stream]) -> Logs {
        let play = self.plays().get(&lease).cloned();
        let Some(play) = play.filter(|_| streams.contains(&Stream::Stdout)) else {
            return stream::empty().boxed();
        };
        let mut text = format!("simulated: would run {:?}\n", play.argv);
        if let Some(address) = play.address {
            text += &format!("simulated: nothing is at {address}, its address in its group\n");
        }
        let line = Piece::from(text);
        let first = stream::iter([Ok((Stream::Stdout, line))]);
        if !follow {
            return first.boxed();
        }
        let end = stream::once(sleep_until(play.ends)).filter_map(|()| async { None });
        first.chain(end).boxed()
    }

    pub(super) async fn collect(&self, lease: LeaseId) -> anyhow::Result<Option<Archive>> {
        let result = self.plays().get(&lease).and_then(|play| play.result.clone());
        let Some(text) = result else {
            return Ok(None);
        };
        let text = fs::read_to_string(self.dir.join("forged.txt")).unwrap_or(text);
        let work = self.dir.join(lease.to_string());
        fs::create_dir_all(work.join("out")).with_context(|| format!("create {}", work.display()))?;
        fs::write(work.join("out/simulated.txt"), text).context("write the simulated result")?;
        archive::pack(&work, "out", &work.join("result.tar"))
    }

    /// Waits for the next start or for the next end of a command.
    pub(super) async fn changed(&self) {
        let observed = Millis(self.observed.load(Ordering::Relaxed));
        let next = self.plays().values().map(|play| play.ends).filter(|ends| *ends > observed).min();
        match next {
            Some(ends) => tokio::select! {
                () = sleep_until(ends) => {}
                () = self.changed.notified() => {}
            },
            None => self.changed.notified().await,
        }
    }
}

async fn sleep_until(at: Millis) {
    let left = at.0.saturating_sub(clock::now().0);
    tokio::time::sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0))).await;
}
