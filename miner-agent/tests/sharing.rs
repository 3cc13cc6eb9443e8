//! The daemons that share devices, as processes: a program stands in for NVIDIA's, everything else is real. They
//! need root, for the memory that daemons share with jobs.

mod common;
#[path = "common/doubles.rs"]
mod doubles;

use std::{collections::BTreeSet, fs, io::Write as _, path::PathBuf, sync::Arc};

use common::{new_lease, until};
use doubles::{DEVICE, Doubles, share};
use nave_domain::LeaseId;
use nave_miner_agent::{
    runtime::docker::shares::Shares,
    share::{Place, Terms, mps::Daemons, watch::Watch},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{sync::Notify, time::timeout};

const LIMITS: [&str; 5] = [
    "mode SIM-1 exclusive",
    "daemon of SIM-1 in /dev/shm/nave-mps",
    "set_default_active_thread_percentage 13",
    "set_default_device_pinned_mem_limit 0 8192M",
    "start_server -uid 4242",
];
const END: [&str; 2] = ["quit", "mode SIM-1 default"];

/// One host; nothing of it is left at the end.
struct Host {
    dir: TempDir,
    doubles: Doubles,
}

impl Drop for Host {
    fn drop(&mut self) {
        Doubles::clear(&self.data());
    }
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { doubles: Doubles::new(&dir.path().join("doubles")), dir }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The daemons as an agent that has just started sees them.
    fn daemons(&self) -> Daemons {
        Daemons::open(&self.data(), self.doubles.means())
    }

    fn is_clean(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let left = fs::read_dir(self.data().join("mps")).into_iter().flatten().flatten();
        Doubles::processes(&self.data()).is_empty()
            && !mounts.contains(&self.data().display().to_string())
            && left.filter(|entry| entry.path().is_dir()).count() == 0
    }
}

fn terms(tenant: u128, gib: i64) -> Terms {
    let share = share(tenant, gib);
    Terms { device: DEVICE.into(), tenant: share.tenant, fraction: share.fraction }
}

#[tokio::test]
async fn a_daemon_has_its_limits_before_the_first_container_and_ends_after_the_last() {
    let host = Host::new();
    let (daemons, first, second) = (host.daemons(), new_lease(), new_lease());
    let place = daemons.join(first, &terms(1, 8)).await.expect("a share");
    assert_eq!(host.doubles.said(), LIMITS);
    assert!(
        place.pipes().join("nvidia-cuda-mps-control.pid").is_file(),
        "it is where containers will see it"
    );
    assert_eq!(daemons.join(second, &terms(1, 8)).await.expect("another"), place);
    assert_eq!(daemons.join(second, &terms(1, 8)).await.expect("the same again"), place);
    assert!(host.doubles.said().is_empty(), "one daemon serves both");
    assert!(!daemons.processes().await.is_empty());
    daemons.leave(first).await.expect("left");
    assert!(host.doubles.said().is_empty());
    daemons.leave(second).await.expect("left");
    assert_eq!(host.doubles.said(), END);
    assert!(host.is_clean());
    daemons.leave(second).await.expect("nothing to leave");
}

#[tokio::test]
async fn memory_that_daemons_share_with_jobs_is_not_the_machines() {
    let host = Host::new();
    let place = host.daemons().join(new_lease(), &terms(1, 8)).await.expect("a share");
    assert!(place.pipes().is_dir());
    assert!(!fs::exists("/dev/shm/nave-mps").expect("known"), "the machine's own has nothing of it");
    host.daemons().settle(&BTreeSet::new()).await.expect("ended");
    assert!(host.is_clean());
}

#[tokio::test]
async fn another_customer_gets_the_device_once_the_first_has_left() {
    let host = Host::new();
    let (daemons, first, second) = (host.daemons(), new_lease(), new_lease());
    daemons.join(first, &terms(1, 8)).await.expect("a share");
    let next = terms(2, 8);
    let (joined, left) = tokio::join!(daemons.join(second, &next), async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        daemons.leave(first).await
    });
    left.expect("left");
    joined.expect("the device is free now");
    let said = host.doubles.said();
    assert_eq!(said, [LIMITS.as_slice(), &END, &LIMITS].concat());
    let whole = [DEVICE.to_owned()];
    let (vacated, left) = tokio::join!(daemons.vacate(&whole), daemons.leave(second));
    vacated.and(left).expect("free for a job that has it whole");
    assert!(host.is_clean());
}

#[tokio::test]
async fn a_daemon_serves_once_its_server_is_there() {
    let host = Host::new();
    let (daemons, lease) = (host.daemons(), new_lease());
    fs::write(host.doubles.path("idle"), "").expect("written");
    let why = daemons.join(lease, &terms(1, 8)).await.expect_err("nobody could compute there");
    assert!(format!("{why:#}").contains("it has no server"), "{why:#}");
    assert!(Doubles::processes(&host.data()).is_empty());
    fs::remove_file(host.doubles.path("idle")).expect("removed");
    let place = daemons.join(lease, &terms(1, 8)).await.expect("a share");
    let served = fs::read_to_string(place.pipes().join("servers")).expect("a number");
    assert!(daemons.processes().await.contains(&served.trim().parse().expect("a number")));
    daemons.leave(lease).await.expect("left");
    assert!(host.is_clean());
}

/// Ends the process of this name of a daemon, as a crash does.
fn crash(place: &Place, name: &str) {
    let pid = fs::read_to_string(place.pipes().join(name)).expect("a number");
    kill(Pid::from_raw(pid.trim().parse().expect("a number")), Signal::SIGKILL).expect("killed");
}

#[tokio::test]
async fn leases_have_lost_what_they_compute_as_soon_as_their_server_is_gone() {
    let host = Host::new();
    let (daemons, lease, other) = (host.daemons(), new_lease(), new_lease());
    let place = daemons.join(lease, &terms(1, 8)).await.expect("a share");
    daemons.join(other, &Terms { device: "SIM-2".into(), ..terms(1, 8) }).await.expect("a share");
    assert!(daemons.lost().is_empty());
    crash(&place, "servers");
    until("it is known, whether or not anybody has looked at the daemon", || {
        daemons.lost() == BTreeSet::from([lease])
    })
    .await;
    assert_eq!(host.daemons().lost(), BTreeSet::from([lease]), "by the next agent, too");
    daemons.settle(&BTreeSet::new()).await.expect("ended");
    assert!(host.is_clean());
}

#[tokio::test]
async fn a_daemon_that_was_killed_is_missed_and_the_next_lease_gets_another_once_its_own_have_left() {
    let host = Host::new();
    let (daemons, lease, next) = (host.daemons(), new_lease(), new_lease());
    let place = daemons.join(lease, &terms(1, 8)).await.expect("a share");
    crash(&place, "nvidia-cuda-mps-control.pid");
    host.doubles.said();
    assert!(daemons.lost().is_empty(), "its server goes on, and they with it");
    tend(&daemons).await;
    assert_eq!(daemons.lost(), BTreeSet::from([lease]));
    assert!(Doubles::processes(&host.data()).is_empty(), "its server is gone, too");
    let after = host.daemons();
    after.settle(&BTreeSet::from([lease])).await.expect("nothing to do");
    after.tend().await.expect("nothing to do");
    assert_eq!(after.lost(), BTreeSet::from([lease]), "the next agent knows");
    assert!(host.doubles.said().is_empty(), "nobody serves them again");
    let terms = terms(1, 8);
    let (joined, left) = tokio::join!(after.join(next, &terms), async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        after.leave(lease).await
    });
    left.expect("left");
    joined.expect("another daemon");
    assert_eq!(host.doubles.said(), [&["mode SIM-1 default"], LIMITS.as_slice()].concat());
    assert!(after.lost().is_empty(), "a lease is lost with its own daemon only");
    after.leave(next).await.expect("left");
    assert!(host.is_clean());
}

#[tokio::test]
async fn the_next_agent_keeps_the_daemons_of_leases_that_are_there_and_ends_the_others() {
    let host = Host::new();
    let lease = new_lease();
    host.daemons().join(lease, &terms(1, 8)).await.expect("a share");
    host.doubles.said();
    let next = host.daemons();
    next.settle(&BTreeSet::from([lease])).await.expect("kept");
    next.tend().await.expect("nothing to do");
    assert!(host.doubles.said().is_empty(), "its jobs go on");
    let after = host.daemons();
    after.settle(&BTreeSet::from([new_lease()])).await.expect("ended");
    assert_eq!(host.doubles.said(), END);
    assert!(host.is_clean());
}

/// Looks at the daemons until there is nothing to do.
async fn tend(daemons: &Daemons) {
    while daemons.tend().await.is_err() {}
}

/// Cuts a start off where an agent might be killed: after so many looks at what was said.
async fn cut_off(host: &Host, lease: LeaseId, line: &str) {
    let daemons = host.daemons();
    let terms = terms(1, 8);
    tokio::select! {
        joined = daemons.join(lease, &terms) => panic!("it came up: {joined:?}"),
        () = until("it has begun", || host.doubles.has_said(line)) => {}
    }
}

#[tokio::test]
async fn a_daemon_whose_agent_was_killed_before_it_had_its_limits_serves_nobody() {
    let host = Host::new();
    let lease = new_lease();
    fs::write(host.doubles.path("deaf"), "").expect("written");
    cut_off(&host, lease, "daemon of").await;
    fs::remove_file(host.doubles.path("deaf")).expect("removed");
    let begun = Doubles::processes(&host.data());
    assert!(!begun.is_empty());
    host.doubles.said();
    host.daemons().tend().await.expect("begun anew");
    assert_eq!(host.doubles.said(), LIMITS);
    assert!(Doubles::processes(&host.data()).iter().all(|pid| !begun.contains(pid)), "by another daemon");
    host.daemons().leave(lease).await.expect("left");
    assert!(host.is_clean());
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_once_goes_on_serving() {
    let host = Host::new();
    let (daemons, lease) = (host.daemons(), new_lease());
    daemons.join(lease, &terms(1, 8)).await.expect("a share");
    host.doubles.said();
    fs::write(host.doubles.path("deaf"), "").expect("written");
    daemons.tend().await.expect_err("it does not answer");
    daemons.join(new_lease(), &terms(1, 8)).await.expect_err("nor serve anybody new");
    fs::remove_file(host.doubles.path("deaf")).expect("removed");
    daemons.tend().await.expect("nothing to do");
    assert!(host.doubles.said().is_empty(), "its jobs go on");
    fs::write(host.doubles.path("deaf"), "").expect("written");
    tend(&daemons).await;
    assert!(!daemons.lost().is_empty(), "but not for ever");
    fs::remove_file(host.doubles.path("deaf")).expect("removed");
    daemons.settle(&BTreeSet::new()).await.expect("ended");
    assert!(host.is_clean());
}

#[tokio::test]
async fn a_daemon_that_does_not_say_its_limits_back_serves_nobody() {
    let host = Host::new();
    fs::write(host.doubles.path("forgetful"), "").expect("written");
    let why = host.daemons().join(new_lease(), &terms(1, 8)).await.expect_err("it has other limits");
    assert!(format!("{why:#}").contains("100.0"), "{why:#}");
    assert!(Doubles::processes(&host.data()).is_empty());
}

#[tokio::test]
async fn a_device_whose_sharing_does_not_end_is_in_nobody_elses_way() {
    let host = Host::new();
    let (daemons, lease, other) = (host.daemons(), new_lease(), new_lease());
    let second = Terms { device: "SIM-2".into(), ..terms(1, 8) };
    daemons.join(lease, &terms(1, 8)).await.expect("a share");
    fs::write(host.doubles.path("stuck"), DEVICE).expect("written");
    daemons.leave(lease).await.expect_err("its mode stays as it is");
    daemons.vacate(&[]).await.expect("a job without devices starts");
    daemons.vacate(&["SIM-3".to_owned()]).await.expect("one that has another device, too");
    daemons.join(other, &second).await.expect("and one that shares another");
    daemons.leave(new_lease()).await.expect("nothing to leave");
    daemons.vacate(&[DEVICE.to_owned()]).await.expect_err("this one is not free");
    fs::remove_file(host.doubles.path("stuck")).expect("removed");
    daemons.vacate(&[DEVICE.to_owned()]).await.expect("now it is");
    daemons.leave(other).await.expect("left");
    assert!(host.is_clean());
}

#[tokio::test]
async fn daemons_are_looked_after_beside_a_device_whose_sharing_does_not_end() {
    let host = Host::new();
    let (daemons, lease, other) = (host.daemons(), new_lease(), new_lease());
    daemons.join(other, &Terms { device: "SIM-2".into(), ..terms(1, 8) }).await.expect("a share");
    daemons.join(lease, &terms(1, 8)).await.expect("a share");
    fs::write(host.doubles.path("stuck"), DEVICE).expect("written");
    daemons.leave(lease).await.expect_err("its mode stays as it is");
    Doubles::kill_all(&host.data());
    daemons.tend().await.expect_err("it still does");
    assert_eq!(daemons.lost(), BTreeSet::from([other]), "that of the other one is missed");
    fs::remove_file(host.doubles.path("stuck")).expect("removed");
    daemons.settle(&BTreeSet::new()).await.expect("ended");
    assert!(host.is_clean());
}

#[tokio::test]
async fn a_daemon_that_nobody_has_written_down_is_ended() {
    let host = Host::new();
    host.daemons().join(new_lease(), &terms(1, 8)).await.expect("a share");
    fs::remove_file(host.data().join("mps/shares.json")).expect("removed");
    host.daemons().settle(&BTreeSet::new()).await.expect("ended");
    assert!(host.is_clean());
}

#[tokio::test]
async fn a_daemon_that_does_not_quit_is_killed_with_its_server() {
    let host = Host::new();
    let (daemons, lease) = (host.daemons(), new_lease());
    fs::write(host.doubles.path("stubborn"), "").expect("written");
    daemons.join(lease, &terms(1, 8)).await.expect("a share");
    daemons.leave(lease).await.expect("killed");
    assert!(host.is_clean());
}

#[tokio::test]
async fn a_lease_gets_no_share_where_the_device_cannot_be_kept_to_its_daemon() {
    let host = Host::new();
    let (daemons, lease) = (host.daemons(), new_lease());
    fs::remove_file(host.doubles.path("nave-prover")).expect("removed");
    let why = daemons.join(lease, &terms(1, 8)).await.expect_err("other processes could compute there");
    assert!(format!("{why:#}").contains("set the compute mode"), "{why:#}");
    assert!(Doubles::processes(&host.data()).is_empty());
}

#[tokio::test]
async fn the_devices_that_are_shared_are_watched_and_no_others() {
    let host = Host::new();
    let (one, other) = (new_lease(), new_lease());
    let shares = Shares::open(&host.data(), host.doubles.means(), Arc::new(Notify::new()));
    let watched = || fs::read_to_string(host.doubles.path("watched")).unwrap_or_default();
    shares.join(one, &terms(1, 8)).await.expect("a share");
    until("it is watched", || watched().ends_with("watch SIM-1\n")).await;
    shares.join(other, &Terms { device: "SIM-2".into(), ..terms(1, 8) }).await.expect("a share");
    until("both are", || watched().ends_with("watch SIM-1 SIM-2\n")).await;
    shares.leave(one).await.expect("left");
    until("the other one still is", || watched().ends_with("watch SIM-2\n")).await;
    shares.leave(other).await.expect("left");
    assert!(host.is_clean());
}

#[tokio::test]
async fn a_prover_that_is_silent_for_long_is_replaced_by_one_that_watches() {
    let host = Host::new();
    let lease = new_lease();
    fs::write(host.doubles.path("mute"), "").expect("written");
    let shares = Shares::open(&host.data(), host.doubles.means(), Arc::new(Notify::new()));
    shares.join(lease, &terms(1, 8)).await.expect("a share");
    let watched = || fs::read_to_string(host.doubles.path("watched")).unwrap_or_default().lines().count();
    until("one watches", || watched() == 1).await;
    fs::remove_file(host.doubles.path("mute")).expect("removed");
    until("another one does", || watched() > 1).await;
    shares.leave(lease).await.expect("left");
    assert!(host.is_clean());
}

#[tokio::test]
async fn half_a_line_of_a_watch_waits_for_its_other_half_whoever_stops_listening() {
    let host = Host::new();
    let (said, device) = (host.doubles.path("holders"), BTreeSet::from([DEVICE.to_owned()]));
    // A pipe, of which the prover's `cat` passes on what it gets, when it gets it.
    fs::remove_file(&said).expect("removed");
    nix::unistd::mkfifo(&said, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut watch = Watch::begin(&host.doubles.means().prover, &device, std::time::Duration::from_secs(60))
        .expect("it runs");
    let mut pipe = tokio::task::spawn_blocking({
        let said = said.clone();
        move || fs::File::options().write(true).open(said).expect("somebody reads")
    })
    .await
    .expect("open");
    let line = format!("{{\"holders\":[{{\"device\":\"{DEVICE}\",\"pid\":7,\"bytes\":9}}]}}\n");
    for half in [&line[..20], &line[20..40]] {
        pipe.write_all(half.as_bytes()).expect("written");
        timeout(std::time::Duration::from_millis(300), watch.next()).await.expect_err("half a line");
    }
    pipe.write_all(&line.as_bytes()[40..]).expect("written");
    let held = watch.next().await.expect("a line");
    assert_eq!((held.len(), held[0].pid, held[0].bytes), (1, 7, 9));
}
