//! Hosts that join, prove, are cut off, are killed and leave.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use nix::{
    sys::signal::Signal::{SIGKILL, SIGTERM},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    TICKS,
    support::{Market, find_process, find_processes, kill, succeed, wait_for},
    ticks,
};

/// Where an attempt of a job ran.
fn host_of(job: &Value, attempt: usize) -> String {
    job["attempts"][attempt]["host"].as_str().expect("a host").to_owned()
}

#[test]
fn three_hosts_run_three_jobs_at_once_one_on_each() {
    let offer = ["--hosts", "3", "--cpu", "1.5", "--memory", "768MiB"];
    let Some(market) = Market::docker(&offer) else { return };
    assert_eq!(market.hosts().len(), 3);
    let size = ["--cpu", "0.5", "--memory", "128MiB"];
    let long = "import time\nfor i in range(20): print('tick', i, flush=True); time.sleep(.3)";
    let jobs = [0; 3].map(|_| market.submit(&size, &["python3", "-c", long]));
    let running = wait_for("all three to run", || {
        let now = jobs.each_ref().map(|job| market.job(job));
        now.iter().all(|job| job["state"] == "running").then_some(now)
    });
    let hosts: BTreeSet<String> = running.iter().map(|job| host_of(job, 0)).collect();
    assert_eq!(hosts.len(), 3, "one on each: {running:?}");
    for job in &jobs {
        assert_eq!(market.await_final(job)["state"], "succeeded");
    }
    market.audit();
}

#[test]
fn a_host_that_is_cut_off_loses_its_job_and_is_welcome_when_it_comes_back() {
    let offer = ["--hosts", "2", "--fence", "3s", "--report", "1s", "--cpu", "1.5", "--memory", "768MiB"];
    let Some(market) = Market::docker(&offer) else { return };
    let before = market.json(&["balance"])["available"].as_i64().expect("money");
    let long = "import time\nfor i in range(12): print('tick', i, flush=True); time.sleep(.5)";
    let job = market.submit(&["--cpu", "0.5", "--memory", "128MiB"], &["python3", "-c", long]);
    let running = market.await_job(&job, "running", |job| job["state"] == "running");
    let lost = market.host(&host_of(&running, 0));
    assert_eq!(lost.containers().len(), 1);
    lost.set_link("down");
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["attempts"][0]["outcome"]["kind"], "host_lost", "{done}");
    assert_ne!(host_of(&done, 1), lost.id(), "it finished elsewhere: {done}");
    let attempts = done["attempts"].as_array().expect("attempts");
    assert_eq!(attempts.len(), 2, "{done}");
    let cost = done["charged"].as_i64().expect("money");
    assert_eq!(market.json(&["balance"])["available"].as_i64().expect("money"), before - cost, "paid once");
    lost.set_link("up");
    market.await_host(lost.id(), "ready");
    wait_for("the stale container to be gone", || lost.containers().is_empty().then_some(()));
    market.audit();
}

#[test]
fn a_host_of_which_every_process_is_killed_costs_its_customer_nothing_and_its_job_is_served_elsewhere() {
    let offer = ["--hosts", "2", "--fence", "3s", "--report", "1s", "--cpu", "1.5", "--memory", "768MiB"];
    let Some(market) = Market::docker(&offer) else { return };
    let before = market.json(&["balance"])["available"].as_i64().expect("money");
    let long = "import time\nfor i in range(12): print('tick', i, flush=True); time.sleep(.5)";
    let job = market
        .submit(&["--cpu", "0.5", "--memory", "128MiB"], &["python3", "-c", long, "dies-with-its-host"]);
    wait_for("it to run", || market.stdout(&job).contains("tick 2").then_some(()));
    let dead = market.host(&host_of(&market.job(&job), 0));
    // Nobody begins anything there again.
    kill(market.supervisor(), SIGKILL);
    let inside = succeed(Command::new("ip").args(["netns", "pids", dead.namespace()]));
    let inside = inside.lines().filter_map(|pid| pid.trim().parse().ok());
    let command = find_process("dies-with-its-host").expect("the command");
    inside.chain([command]).for_each(|pid| {
        nix::sys::signal::kill(Pid::from_raw(pid), SIGKILL).ok();
    });
    let lost = market.await_job(&job, "lost", |job| job["attempts"][0]["outcome"]["kind"] == "host_lost");
    assert_eq!(lost["attempts"][0]["charged"], 0, "{lost}");
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_ne!(host_of(&done, 1), dead.id(), "it was served elsewhere: {done}");
    assert_eq!(done["attempts"].as_array().expect("attempts").len(), 2, "{done}");
    assert_eq!(done["attempts"][0]["charged"], 0, "{done}");
    assert_eq!(done["charged"], done["attempts"][1]["charged"], "{done}");
    let cost = done["charged"].as_i64().expect("money");
    assert_eq!(market.json(&["balance"])["available"].as_i64().expect("money"), before - cost, "paid once");
    market.audit();
    market.up();
    market.await_host(dead.id(), "ready");
}

#[test]
fn a_host_that_is_lost_for_good_is_to_blame_and_its_customer_and_its_miner_are_told_why() {
    let offer = ["--hosts", "2", "--fence", "3s", "--report", "1s", "--cpu", "1.5", "--memory", "768MiB"];
    let Some(market) = Market::docker(&offer) else { return };
    let long = "import time; time.sleep(30)";
    let job = market.submit(&["--cpu", "0.5", "--memory", "128MiB"], &["python3", "-c", long]);
    let running = market.await_job(&job, "running", |job| job["state"] == "running");
    let lost = market.host(&host_of(&running, 0));
    market.arm("validator.events.before_decide");
    lost.set_link("down");
    let done = market.await_final(&job);
    assert_eq!(done["attempts"][0]["outcome"]["kind"], "host_lost", "{done}");
    assert_eq!(done["attempts"][0]["events"][0]["kind"], "host_lost", "{done}");
    // It has a minute to come back, in a market on one machine; if it does, it says itself what became of the lease.
    let decided = market.await_job(&job, "decided", |job| {
        let by = &job["attempts"][0]["events"][0]["decision"]["confirmed_by"];
        *by == "absence" || *by == "report"
    });
    assert!(
        !market.is_armed("validator.events.before_decide"),
        "a validator was killed, too, and the next one decided"
    );
    let event = &decided["attempts"][0]["events"][0];
    assert_eq!(event["decision"]["blame"], "host", "{event}");
    assert_eq!(decided["attempts"][1]["events"], serde_json::json!([]), "{decided}");
    let receipt = succeed(&mut market.nave(&["receipt", &job]));
    assert!(receipt.contains("host lost (host, confirmed by"), "{receipt}");
    let told = succeed(&mut market.miner(&["events", lost.id()]));
    assert!(told.contains("host lost"), "{told}");
    market.audit();
}

#[test]
fn a_host_that_claims_eight_times_its_cores_is_refused_and_told_why() {
    let Some(market) = Market::simulated(&["--hosts", "2", "--cpu", "1.5"]) else { return };
    let cores = std::thread::available_parallelism().expect("cores").get() * 8;
    let liar = market.stranger("liar", &["--cpu", &cores.to_string(), "--memory", "64MiB"]);
    let refused = market.await_host(&liar.id, "refused");
    assert_eq!(refused["reason"]["code"], "cpu_overclaimed", "{refused}");
    assert!(succeed(&mut market.nave(&["hosts"])).contains("refused"));
    let shown = succeed(&mut market.miner(&["show", "liar"]));
    assert!(shown.contains("cpu_overclaimed"), "{shown}");
    wait_for("the host itself to tell why", || {
        let status = succeed(market.program("miner-agent").args(["status", "--data"]).arg(&liar.data));
        status.contains("(cpu_overclaimed)").then_some(())
    });
    let elsewhere = market.submit(&["--cpu", "0.5", "--memory", "128MiB", "--image", &image()], &["true"]);
    let done = market.await_final(&elsewhere);
    assert_ne!(host_of(&done, 0), liar.id, "no job goes to a host that was refused");
}

fn image() -> String {
    format!("example.org/none@sha256:{}", "0".repeat(64))
}

#[test]
fn a_verifier_or_a_prover_that_is_killed_fails_nobody() {
    let Some(market) = Market::simulated(&["--hosts", "2"]) else { return };
    let host = market.stranger("honest", &["--cpu", "0.5", "--memory", "256MiB"]);
    let prover = wait_for("its proof to begin", || host.prover());
    kill(prover, SIGKILL);
    kill(market.pid("verifier"), SIGKILL);
    market.await_host(&host.id, "ready");
}

#[test]
fn who_leaves_or_is_banned_is_cut_off_at_once() {
    let Some(market) = Market::simulated(&["--hosts", "3"]) else { return };
    let hub = {
        let member = succeed(market.hosts()[0].inside("ip").args(["-6", "-o", "address", "show"]));
        let own =
            member.lines().find(|line| line.contains("_h1")).expect("an address of the mesh").to_owned();
        let own = own.split_whitespace().nth(3).expect("an address").to_owned();
        format!("{}::1", own.split(':').take(3).collect::<Vec<_>>().join(":"))
    };
    let reaches_hub = |number: usize| {
        let connect = format!("import socket; socket.create_connection(('{hub}', 7461), timeout=3)");
        let mut python = market.hosts()[number].inside("python3");
        python.args(["-c", &connect]).output().expect("run python3").status.success()
    };
    assert!((0..3).all(reaches_hub), "members reach the hub and nothing else");
    succeed(market.naved().args(["admin", "ban", market.hosts()[0].id()]));
    succeed(&mut market.miner(&["leave", market.hosts()[1].id()]));
    for number in [0, 1] {
        wait_for("it to be cut off", || (!reaches_hub(number)).then_some(()));
    }
    assert!(reaches_hub(2), "the third one stays");
    assert_eq!(market.all_hosts().len(), 1);
}

#[test]
fn a_banned_host_stays_out_and_one_that_left_joins_anew() {
    let Some(market) = Market::simulated(&["--hosts", "2"]) else { return };
    let ids =
        |market: &Market| -> Vec<String> { market.hosts().iter().map(|host| host.id().to_owned()).collect() };
    let before = ids(&market);
    succeed(market.naved().args(["admin", "ban", &before[0]]));
    succeed(&mut market.miner(&["leave", &before[1]]));
    market.down();
    market.up();
    let after = ids(&market);
    assert_eq!(after[0], before[0], "a ban is not forgotten");
    assert!(market.up_json()["limits"].to_string().contains("banned"));
    assert_ne!(after[1], before[1]);
    market.await_host(&after[1], "ready");
}

#[test]
fn a_job_never_notices_that_its_host_changes_its_mesh_key() {
    let Some(market) = Market::docker(&["--report", "1s"]) else { return };
    let host = market.hosts().remove(0);
    let before = host.mesh_key();
    let job = market.submit(&[], &["python3", "-c", TICKS]);
    market.await_job(&job, "running", |job| job["state"] == "running");
    succeed(market.program("miner-agent").args(["rotate", "--data"]).arg(host.data()));
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["attempts"].as_array().expect("attempts").len(), 1, "{done}");
    assert_eq!(market.stdout(&job), ticks());
    wait_for("another key", || (host.mesh_key() != before).then_some(()));
    let after = market.submit(&[], &["true"]);
    assert_eq!(market.await_final(&after)["state"], "succeeded");
}

#[test]
fn an_agent_gives_its_place_to_a_signed_release_while_its_job_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (secret, program) = (path("release.key"), path("agent"));
    let mut keygen = Command::new(env!("CARGO_BIN_EXE_naved"));
    let key = succeed(keygen.args(["admin", "release", "keygen", &secret])).trim().to_owned();
    let Some(market) = Market::docker(&["--report", "1s", "--release-key", &key]) else { return };
    let host = market.hosts()[0].id().to_owned();
    // The same program under another version.
    let agent = Path::new(env!("CARGO_BIN_EXE_naved")).with_file_name("miner-agent");
    let text = format!("#!/bin/sh\nNAVE_AGENT_VERSION=0.9.0 exec {} \"$@\"\n", agent.display());
    fs::write(&program, text).expect("written");
    let release = |verb: &str, more: &[&str]| {
        let mut command = market.naved();
        command.args(["admin", "release", verb, &program, "--version", "0.9.0"]).args(more);
        command
    };
    let job = market.submit(&[], &["python3", "-c", TICKS]);
    market.await_job(&job, "running", |job| job["state"] == "running");
    let signature = succeed(&mut release("sign", &["--key", &secret])).trim().to_owned();
    let forged = "0".repeat(128);
    let refused =
        release("publish", &["--signature", &forged, "--release-key", &key]).output().expect("run naved");
    assert!(!refused.status.success(), "only what is signed is published");
    succeed(&mut release("publish", &["--signature", &signature, "--release-key", &key]));
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["attempts"].as_array().expect("attempts").len(), 1, "{done}");
    assert_eq!(market.stdout(&job), ticks());
    wait_for("the new agent to report", || {
        let listed = market.listed(&host)?;
        listed["inventory"]["agent"].as_str()?.starts_with("0.9.0").then_some(())
    });
    market.audit();
}

#[test]
fn down_leaves_nothing_on_the_machine_also_when_everything_was_killed() {
    let Some(market) = Market::docker(&["--hosts", "2"]) else { return };
    let jobs = ["left-behind-1", "left-behind-2"];
    for name in jobs {
        let job = market.submit(&["--cpu", "0.5"], &["python3", "-c", "import time; time.sleep(600)", name]);
        market.await_job(&job, "running", |job| job["state"] == "running");
        wait_for("its command", || find_process(name));
    }
    let hosts = market.hosts();
    let names: Vec<String> =
        hosts.iter().flat_map(|host| [host.namespace().to_owned(), host.link()]).collect();
    kill(market.supervisor(), SIGKILL);
    for host in &hosts {
        kill(market.pid(&host.part("dockerd")), SIGKILL);
    }
    kill(market.pid("hub"), SIGKILL);
    market.down();
    for name in jobs {
        assert_eq!(find_process(name), None, "{name} still runs");
    }
    let left =
        [["netns", "list"].as_slice(), &["-o", "link"]].map(|args| succeed(Command::new("ip").args(args)));
    let letters = names[1].split('_').next().expect("letters");
    assert!(!left.concat().contains(letters), "{left:?}");
    let tables = succeed(Command::new("nft").args(["list", "tables"]));
    assert!(!tables.contains(letters), "{tables}");
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    assert!(!mounts.contains(&*market.data().to_string_lossy()), "{mounts}");
    market.up();
    market.await_host(hosts[0].id(), "ready");
}

#[test]
fn a_part_that_was_started_by_a_supervisor_killed_that_very_moment_is_not_forgotten() {
    let Some(market) = Market::simulated(&[]) else { return };
    let key = market.data().join("market.key").to_string_lossy().into_owned();
    market.arm("up.part.after_spawn");
    kill(market.pid("gateway"), SIGTERM);
    let supervisor = market.supervisor();
    wait_for("the supervisor to be killed", || {
        let gone = !fs::exists(format!("/proc/{supervisor}/environ")).unwrap_or(true);
        (gone && !market.is_armed("up.part.after_spawn")).then_some(())
    });
    let gateways = || find_processes(&["gateway", &key]);
    assert_eq!(gateways().len(), 1, "it runs and is recorded nowhere");
    market.up();
    assert_eq!(gateways(), [market.pid("gateway")]);
}
