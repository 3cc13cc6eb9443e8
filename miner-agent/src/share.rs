//! Shares of devices: MPS within one customer, with limits that its daemon holds, and a watch over memory.
//!
//! What is decided is here and pure. [`mps`] keeps the daemons, one for each device that is shared, and
//! [`watch`] hears from a prover who holds how much memory of which device.
//!
//! Nobody has tried any of it on a GPU: what MPS does with what it is told, its documentation says.

pub mod mps;
pub mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use nave_domain::{
    Bytes, LeaseId,
    fraction::{Division, Fraction, Tenant},
    host::Device,
};
use nave_sdk::wire::{host::Order, sign::sha256};
use serde::{Deserialize, Serialize};

use crate::inspect::proc;

/// What a program that controls MPS is called.
pub const CONTROL: &str = "nvidia-cuda-mps-control";
/// What a daemon is asked that has been told its limits.
pub const QUESTIONS: &str = "get_default_active_thread_percentage\nget_default_device_pinned_mem_limit 0\n";
/// Where daemons and jobs find the memory that they share.
pub const MEMORY: &str = "/dev/shm";
/// Where they find the daemon's pipes and sockets.
pub const PIPES: &str = "/dev/shm/nave-mps";
/// Where a daemon writes about itself.
const LOG: &str = "/dev/shm/nave-mps-log";
/// The variable of a daemon's processes that says which one they belong to.
pub const MARK: &str = "NAVE_MPS";
/// What a lease may be seen to hold beyond its share before it is ended: drivers count some of what
/// they need for themselves.
pub const SLACK: Bytes = Bytes(256 * Bytes::MIB);
/// Longest path of a socket, in bytes: what the kernel's address has room for, with its end.
const SOCKET_BYTES_MAX: usize = 107;
/// The longest name of a socket that MPS makes below its directory.
const SOCKET_NAME: &str = "control_privileged";

/// What one device is shared by: whose shares they are, and how large each of them is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The device.
    pub device: String,
    /// Whose.
    pub tenant: Tenant,
    /// The size of each.
    pub fraction: Fraction,
}

impl Terms {
    /// The terms on which an order has a share; none where it has none.
    ///
    /// # Errors
    /// A sentence, where no host could do it.
    pub fn of(order: &Order) -> Result<Option<Self>, String> {
        let Some(share) = order.share else { return Ok(None) };
        let [device] = order.devices.as_slice() else {
            return Err(format!("a share is of one device, and {} are ordered", order.devices.len()));
        };
        let Fraction { milli, vram } = share.fraction;
        // The identifier becomes a variable's value, and lists of them are split at commas.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !(1..=1_000).contains(&milli.0) || vram.0 < Bytes::MIB || !device.bytes().all(is_plain) {
            return Err(format!("no share of {device:?} has {} thousandths and {vram}", milli.0));
        }
        Ok(Some(Self { device: device.clone(), tenant: share.tenant, fraction: share.fraction }))
    }

    /// A short name that nobody else's daemon has: the path of a socket is short.
    #[must_use]
    pub fn name(&self) -> String {
        hex::encode(&sha256(format!("{} {}", self.device, self.tenant.0).as_bytes()).0[..8])
    }

    /// What is said to a daemon before it serves anyone. Both are limits of every process that computes there; whatever
    /// a process says itself can only lower them.
    #[must_use]
    pub fn commands(&self) -> String {
        // The daemon sees one device, whose number therefore is 0.
        format!(
            "set_default_active_thread_percentage {}\nset_default_device_pinned_mem_limit 0 {}M\n",
            self.percentage(),
            self.mib()
        )
    }

    /// Whether a daemon's answers to [`QUESTIONS`], such as `50.0` and `8G`, are these limits. What cannot be read is not.
    #[must_use]
    pub fn are_limits(&self, said: &str) -> bool {
        let mut words = said.split_whitespace();
        let percentage = words.next().map(|word| word.strip_suffix(".0").unwrap_or(word).parse::<i64>());
        let mib = words.next().and_then(|word| match word.split_at_checked(word.len().checked_sub(1)?)? {
            (count, "G") => count.parse::<i64>().ok()?.checked_mul(1 << 10),
            (count, "M") => count.parse().ok(),
            _ => None,
        });
        percentage == Some(Ok(self.percentage())) && mib == Some(self.mib()) && words.next().is_none()
    }

    /// Percent of the device's computing, rounded up.
    fn percentage(&self) -> i64 {
        (self.fraction.milli.0 + 9) / 10
    }

    /// Memory in MiB, rounded down.
    fn mib(&self) -> i64 {
        self.fraction.vram.0 / Bytes::MIB
    }
}

/// The directory of a daemon. All that it shares with those whom it serves is in one file system in memory, which
/// they and nobody else have mounted in place of the machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(pub PathBuf);

impl Place {
    /// Where that file system is mounted.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// The pipes in it.
    #[must_use]
    pub fn pipes(&self) -> PathBuf {
        self.inside(PIPES)
    }

    /// What the daemon writes about itself.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.inside(LOG)
    }

    fn inside(&self, path: &str) -> PathBuf {
        let memory = self.memory();
        Path::new(path).strip_prefix(MEMORY).map_or_else(|_| memory.clone(), |rest| memory.join(rest))
    }

    /// Refuses a place whose sockets nobody could name.
    ///
    /// # Errors
    /// A sentence with what to do about it.
    pub fn check(&self) -> Result<(), String> {
        let longest = self.pipes().join(SOCKET_NAME);
        match longest.as_os_str().len() {
            length if length > SOCKET_BYTES_MAX => Err(format!(
                "{} is longer than the {SOCKET_BYTES_MAX} bytes that a socket's path may have: give the agent a shorter --data",
                longest.display()
            )),
            _ => Ok(()),
        }
    }

    /// The variables of a daemon for this device.
    #[must_use]
    pub fn variables(&self, device: &str) -> Vec<(&'static str, OsString)> {
        vec![
            ("CUDA_VISIBLE_DEVICES", device.into()),
            ("CUDA_MPS_PIPE_DIRECTORY", PIPES.into()),
            ("CUDA_MPS_LOG_DIRECTORY", LOG.into()),
            (MARK, self.0.clone().into()),
        ]
    }

    /// The variables of who speaks to it from outside.
    #[must_use]
    pub fn outside(&self) -> Vec<(&'static str, OsString)> {
        vec![("CUDA_MPS_PIPE_DIRECTORY", self.pipes().into()), ("CUDA_MPS_LOG_DIRECTORY", self.log().into())]
    }

    /// What a container of those whom it serves has mounted.
    #[must_use]
    pub fn bind(&self) -> String {
        format!("{}:{MEMORY}:rw", self.memory().display())
    }
}

/// Adds a lease to those that share a device. Answers whether it was new.
///
/// # Errors
/// A sentence, where the device is somebody else's, shared out in another size, or its daemon has ended.
pub fn join(records: &mut BTreeMap<String, Record>, lease: LeaseId, terms: &Terms) -> Result<bool, String> {
    let record = records.entry(terms.device.clone()).or_insert_with(|| Record {
        terms: terms.clone(),
        leases: BTreeSet::new(),
        stage: Stage::Beginning,
        silences: 0,
    });
    if record.stage == Stage::Lost {
        return Err(format!("the daemon that shares {} has ended, and its leases have yet to", terms.device));
    }
    if record.terms.tenant != terms.tenant {
        return Err(format!("{} is shared by another customer", terms.device));
    }
    if record.terms.fraction != terms.fraction {
        return Err(format!("{} is shared out in shares of another size", terms.device));
    }
    Ok(record.leases.insert(lease))
}

/// Who shares a device, as it is written down before it matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// On which terms.
    pub terms: Terms,
    /// The leases that have, or are about to have, a share; without any the daemon shall end.
    pub leases: BTreeSet<LeaseId>,
    /// How far its daemon is.
    pub stage: Stage,
    /// How many times in a row it has not answered.
    #[serde(skip)]
    pub silences: u32,
}

/// How far the daemon of a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It has yet to be told its limits, and serves nobody.
    Beginning,
    /// Leases compute in this process.
    Serving(Server),
    /// It ended before its leases, and what they computed is lost. Nobody gets a share until they have left.
    Lost,
}

/// The server of a daemon, known also after another process has got its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its number.
    pub pid: u32,
    /// When it began, in ticks since the machine started.
    pub began: u64,
}

impl Server {
    /// The process of this number, where there is one.
    #[must_use]
    pub fn find(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, began: proc::began(&stat)? })
    }

    /// Whether it is still there.
    #[must_use]
    pub fn is_there(&self) -> bool {
        Self::find(self.pid) == Some(*self)
    }
}

/// Memory of a device that a process holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Held {
    /// The device.
    pub device: String,
    /// The process, as this machine counts them.
    pub pid: u32,
    /// How much.
    pub bytes: u64,
}

/// That a lease holds more than its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Over {
    /// What it asked for.
    pub asked: Bytes,
    /// What it was seen to hold.
    pub used: Bytes,
}

/// The leases that hold more memory of their device than they have a share of, by more than [`SLACK`].
///
/// A process may stand in several of a driver's lists; what it holds counts once.
#[must_use]
pub fn over(
    held: &[Held],
    shares: &BTreeMap<LeaseId, (String, Bytes)>,
    lease_of: impl Fn(u32) -> Option<LeaseId>,
) -> BTreeMap<LeaseId, Over> {
    let mut of_processes: BTreeMap<(&str, u32), u64> = BTreeMap::new();
    for held in held {
        let most = of_processes.entry((&held.device, held.pid)).or_default();
        *most = held.bytes.max(*most);
    }
    let mut of_leases: BTreeMap<LeaseId, u64> = BTreeMap::new();
    for ((device, pid), bytes) in of_processes {
        let lease = lease_of(pid).filter(|lease| shares.get(lease).is_some_and(|(own, _)| *own == device));
        if let Some(lease) = lease {
            let sum = of_leases.entry(lease).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    let is_over = |(lease, bytes): (LeaseId, u64)| {
        let asked = shares.get(&lease)?.1;
        let used = Bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
        (used.0 > asked.0.saturating_add(SLACK.0)).then_some((lease, Over { asked, used }))
    };
    of_leases.into_iter().filter_map(is_over).collect()
}

/// The lease whose container a process is in, by the text of its `/proc/…/cgroup`.
#[must_use]
pub fn lease_in(cgroup: &str, containers: &BTreeMap<String, LeaseId>) -> Option<LeaseId> {
    let words = cgroup.split(|c: char| !c.is_ascii_hexdigit());
    words.filter(|word| word.len() == 64).find_map(|id| containers.get(id).copied())
}

/// The devices as they are offered: in shares only where this host can hold their limits. Nothing
/// is there to hold them for devices that are simulated, and nothing is computed on those.
#[must_use]
pub fn offered(devices: Vec<Device>, can_share: bool) -> Vec<Device> {
    let offer = |device: Device| match device.division {
        Division::Shares if !can_share && !device.simulated => Device { division: Division::Whole, ..device },
        Division::Whole | Division::Shares | Division::Slices(_) => device,
    };
    devices.into_iter().map(offer).collect()
}

#[cfg(test)]
mod tests {
    use nave_domain::{MilliGpu, fraction::Share};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn lease(n: u128) -> LeaseId {
        LeaseId::from(Uuid::from_u128(n))
    }

    fn terms(tenant: u128, gib: i64) -> Terms {
        let fraction = Fraction { milli: MilliGpu(125), vram: Bytes(gib * Bytes::GIB) };
        Terms { device: "GPU-1".into(), tenant: Tenant(Uuid::from_u128(tenant)), fraction }
    }

    fn held(device: &str, pid: u32, bytes: u64) -> Held {
        Held { device: device.into(), pid, bytes }
    }

    fn order(devices: &[&str], share: Option<Share>) -> Order {
        let order = serde_json::json!({
            "job": format!("job_{:032x}", 1), "attempt": 1, "stop": null, "image": "i", "argv": ["a"], "env": {},
            "milli_cpu": 1, "memory": 1, "disk": 1, "devices": devices, "egress": "none",
        });
        Order { share, ..serde_json::from_value(order).expect("an order") }
    }

    #[test]
    fn a_daemon_is_told_the_limits_of_every_process_before_it_serves_one() {
        let said = "set_default_active_thread_percentage 13\nset_default_device_pinned_mem_limit 0 8192M\n";
        assert_eq!(terms(1, 8).commands(), said);
    }

    #[test]
    fn a_daemon_has_its_limits_where_it_says_them_back() {
        let terms = terms(1, 8);
        for said in ["13.0\n8192M\n", "13\n8G\n"] {
            assert!(terms.are_limits(said), "{said:?}");
        }
        for said in [
            "",
            "13.0\n",
            "100.0\n8G\n",
            "13.5\n8G\n",
            "13.0\n9G\n",
            "13.0\n8192\n",
            "13.0\n8G\n8G\n",
            "13.0\nµ\n",
        ] {
            assert!(!terms.are_limits(said), "{said:?}");
        }
    }

    #[test]
    fn a_daemon_sees_its_device_and_nothing_of_other_daemons() {
        let place = Place("/d/x".into());
        let variables = place.variables("GPU-1");
        assert_eq!(variables[0], ("CUDA_VISIBLE_DEVICES", "GPU-1".into()));
        assert_eq!(variables[1], ("CUDA_MPS_PIPE_DIRECTORY", "/dev/shm/nave-mps".into()));
        assert_eq!(place.outside()[0], ("CUDA_MPS_PIPE_DIRECTORY", "/d/x/shm/nave-mps".into()));
        assert_eq!(place.bind(), "/d/x/shm:/dev/shm:rw");
        assert_ne!(terms(1, 8).name(), terms(2, 8).name());
        assert_eq!(terms(1, 8).name().len(), 16);
    }

    #[test]
    fn a_directory_whose_sockets_nobody_could_name_is_refused_with_what_to_do() {
        let check = |length: usize| Place(format!("/{}", "d".repeat(length)).into()).check();
        assert_eq!(check(74), Ok(()));
        assert!(check(75).expect_err("too long").contains("--data"));
    }

    #[test]
    fn an_order_has_a_share_of_one_device_or_none() {
        let Terms { tenant, fraction, .. } = terms(1, 8);
        let share = Share { fraction, tenant };
        assert_eq!(Terms::of(&order(&["GPU-1"], None)), Ok(None));
        assert_eq!(Terms::of(&order(&["GPU-1"], Some(share))), Ok(Some(terms(1, 8))));
        let with =
            |vram, milli| Share { fraction: Fraction { milli: MilliGpu(milli), vram: Bytes(vram) }, tenant };
        for (devices, share) in [
            (&["GPU-1", "GPU-2"][..], share),
            (&[], share),
            (&["GPU-1,GPU-2"], share),
            (&["GPU-1"], with(0, 125)),
            (&["GPU-1"], with(-1, 125)),
            (&["GPU-1"], with(Bytes::GIB, 0)),
            (&["GPU-1"], with(Bytes::GIB, 1_001)),
        ] {
            assert!(Terms::of(&order(devices, Some(share))).is_err(), "{devices:?} {share:?}");
        }
    }

    #[test]
    fn a_device_is_shared_by_one_customer_in_shares_of_one_size() {
        let mut records = BTreeMap::new();
        assert_eq!(join(&mut records, lease(1), &terms(1, 8)), Ok(true));
        assert_eq!(join(&mut records, lease(2), &terms(1, 8)), Ok(true));
        assert_eq!(join(&mut records, lease(2), &terms(1, 8)), Ok(false), "asked again");
        assert!(
            join(&mut records, lease(3), &terms(2, 8)).is_err_and(|why| why.contains("another customer"))
        );
        assert!(join(&mut records, lease(3), &terms(1, 9)).is_err_and(|why| why.contains("another size")));
        records.values_mut().for_each(|record| record.stage = Stage::Lost);
        assert!(join(&mut records, lease(3), &terms(1, 8)).is_err_and(|why| why.contains("has ended")));
    }

    #[test]
    fn a_server_is_not_taken_for_another_process_of_its_number() {
        let own = Server::find(std::process::id()).expect("this process");
        assert!(own.is_there());
        assert!(!Server { began: own.began + 1, ..own }.is_there());
        assert_eq!(Server::find(u32::MAX), None);
    }

    #[test]
    fn a_lease_that_asked_for_8_gib_and_holds_9_is_over() {
        let share = || ("GPU-1".to_owned(), Bytes(8 << 30));
        let shares = BTreeMap::from([(lease(1), share()), (lease(2), share())]);
        let lease_of = |pid| Some(lease(u128::from(pid) / 10));
        let over = |held: &[Held]| over(held, &shares, lease_of).into_iter().collect::<Vec<_>>();
        assert_eq!(over(&[held("GPU-1", 10, 8 * GIB), held("GPU-1", 20, 8 * GIB)]), []);
        let found = Over { asked: Bytes(8 << 30), used: Bytes(9 << 30) };
        assert_eq!(over(&[held("GPU-1", 10, 9 * GIB), held("GPU-1", 20, 8 * GIB)]), [(lease(1), found)]);
        assert_eq!(
            over(&[held("GPU-1", 10, 5 * GIB), held("GPU-1", 11, 4 * GIB)]),
            [(lease(1), found)],
            "in two processes"
        );
        assert_eq!(over(&[held("GPU-1", 10, 5 * GIB), held("GPU-1", 10, 5 * GIB)]), [], "in two lists");
        assert_eq!(
            over(&[held("GPU-2", 10, 9 * GIB), held("GPU-1", 30, 9 * GIB)]),
            [],
            "another device, another lease"
        );
    }

    #[test]
    fn a_process_belongs_to_the_container_that_its_cgroup_names() {
        let id = |digit: &str| digit.repeat(64);
        let containers = BTreeMap::from([(id("a"), lease(1)), (id("b"), lease(2))]);
        let found = |text: &str| lease_in(text, &containers);
        assert_eq!(found(&format!("0::/system.slice/docker-{}.scope\n", id("a"))), Some(lease(1)));
        assert_eq!(found(&format!("12:devices:/docker/{}\n0::/docker/{0}\n", id("b"))), Some(lease(2)));
        assert_eq!(found(&format!("0::/docker/{}a\n", id("a"))), None, "another name");
        assert_eq!(found("0::/user.slice\n"), None);
    }

    #[test]
    fn shares_are_offered_only_where_their_limits_can_be_held() {
        let device = |division, simulated| Device {
            uuid: "GPU-1".into(),
            model: "any".into(),
            vram: Bytes(1),
            driver: String::new(),
            simulated,
            division,
        };
        let division =
            |division, simulated, can| offered(vec![device(division, simulated)], can)[0].division.clone();
        assert_eq!(division(Division::Shares, false, false), Division::Whole);
        assert_eq!(division(Division::Shares, false, true), Division::Shares);
        assert_eq!(division(Division::Shares, true, false), Division::Shares);
        assert_eq!(division(Division::Whole, false, true), Division::Whole);
        assert_eq!(division(Division::Slices(vec![]), false, false), Division::Slices(vec![]));
    }

    proptest! {
        #[test]
        fn the_limits_of_a_daemon_never_exceed_the_share_by_more_than_they_are_rounded(milli in 1..=1_000_i64, vram in Bytes::MIB..1 << 42) {
            let fraction = Fraction { milli: MilliGpu(milli), vram: Bytes(vram) };
            let terms = Terms { fraction, ..terms(1, 1) };
            prop_assert!((1..=100).contains(&terms.percentage()));
            prop_assert!((0..10).contains(&(terms.percentage() * 10 - milli)));
            prop_assert!((0..Bytes::MIB).contains(&(vram - terms.mib() * Bytes::MIB)));
        }

        #[test]
        fn only_who_holds_more_than_its_share_is_over(bytes in proptest::collection::vec(0..4 * GIB, 1..6), asked in 1..8_i64) {
            let shares = BTreeMap::from([(lease(1), ("GPU-1".to_owned(), Bytes(asked << 30)))]);
            let held: Vec<Held> = (0..).zip(&bytes).map(|(pid, bytes)| held("GPU-1", pid, *bytes)).collect();
            let sum: u64 = bytes.iter().sum();
            let found = over(&held, &shares, |_| Some(lease(1)));
            prop_assert_eq!(!found.is_empty(), i128::from(sum) > (i128::from(asked) << 30) + i128::from(SLACK.0));
        }
    }
}
