//! What a verifier takes while many hosts are tested.

use std::{env, fs, num::NonZeroUsize, process::Command, time::Instant};

use nave_domain::verdict::Kind;
use nave_store::Store;
use nave_verifier::{Config, Verifier};

use crate::{
    devices::{NO_SOONER, with_devices},
    market::{Host, look, open},
};

/// Hosts that are tested at the same time, and how many simulated GPUs each of them has.
const SESSIONS: usize = 200;
const DEVICES: usize = 1;
const MOST_KIB: u64 = 1 << 20;

fn only_devices() -> Config {
    let judges = NonZeroUsize::new(2).expect("two");
    Config { enforced: [Kind::Devices].into(), judges, ..with_devices(NO_SOONER) }
}

/// What the process has taken: memory at most, in KiB, and time of cores, in milliseconds.
fn taken() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    let memory = line.trim().trim_end_matches(" kB").parse().expect("a number");
    let stat = fs::read_to_string("/proc/self/stat").expect("times");
    let after_name = stat.rsplit_once(')').expect("a name").1;
    let ticks =
        after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks"));
    (memory, ticks.sum::<u64>() * 10)
}

/// What the child of the measurement runs; nothing, where no database is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_verifier_that_judges_all_in_a_process_of_its_own() {
    let Ok(url) = env::var("NAVE_TEST_SESSIONS") else { return };
    let store = Store::connect(&url).await.expect("connect");
    let mut verifier = Verifier::new(only_devices(), store.clone());
    let (_, idle_ms) = taken();
    let begin = Instant::now();
    while !store.challenges_open().await.expect("open").is_empty() {
        look(&mut verifier).await;
    }
    let (memory_kib, core_ms) = taken();
    println!("SESSIONS {memory_kib} {} {}", begin.elapsed().as_millis(), core_ms - idle_ms);
}

/// All steps of each host's test but the verdict: the openings differ, as their nonces do.
async fn answered(hosts: &mut [Host], verifier: &mut Verifier) {
    for _ in 0..7 {
        look(verifier).await;
        for host in hosts.iter_mut() {
            host.report().await;
            let challenge = host.fetch().await.expect("a challenge");
            host.answer(&challenge).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of some minutes: cargo test --release -p nave-verifier --test verifying sessions -- --ignored --nocapture"]
async fn two_hundred_hosts_are_judged_within_a_gibibyte() {
    let market = open().await;
    let mut hosts = Vec::new();
    for number in 0..SESSIONS {
        let uuids: Vec<String> = (0..DEVICES).map(|slot| format!("SIM-{number}-{slot}")).collect();
        let devices: Vec<_> = uuids.iter().map(|uuid| (uuid.as_str(), Vec::new())).collect();
        hosts.push(market.host_with_devices(&format!("host {number}"), &devices).await);
    }
    answered(&mut hosts, &mut Verifier::new(only_devices(), market.store.clone())).await;
    let answers = hosts[0].challenges().await.pop().expect("a challenge").answers;
    let opening = &answers.last().expect("an opening")["opening"]["blob"];
    println!("{SESSIONS} openings of {DEVICES} devices, one has {} bytes", opening["size"]);
    let mut child = Command::new(env::current_exe().expect("this program"));
    child.args(["--exact", "sessions::a_verifier_that_judges_all_in_a_process_of_its_own", "--nocapture"]);
    let child = child.env("NAVE_TEST_SESSIONS", &market.url).output().expect("run");
    let said = String::from_utf8_lossy(&child.stdout);
    let line = said.lines().find_map(|line| line.split_once("SESSIONS ")).expect("what it took").1;
    let [memory_kib, wall_ms, core_ms] = [0, 1, 2].map(|number| {
        line.split_whitespace().nth(number).expect("a number").parse::<u64>().expect("a number")
    });
    println!(
        "at most {} MiB resident, {wall_ms} ms, {} ms of a core for each",
        memory_kib >> 10,
        core_ms / SESSIONS as u64
    );
    for host in &hosts {
        assert_eq!(host.last_code().await, "passed", "{:?}", host.rulings().await);
    }
    assert!(memory_kib <= MOST_KIB, "{memory_kib} KiB");
}
