//! GPUs that are simulated, honest ones and others, in a market that insists on proofs of them.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{Market, succeed, wait_for};

/// Devices of each host.
const DEVICES: usize = 8;
const ENFORCED: [&str; 2] = ["--enforce", "cpu,memory,devices"];

/// Gives a local host simulated devices, each with these fields beside the usual ones.
fn give(data: &Path, number: u8, name: &str, more: &Value) {
    give_some(data, number, name, DEVICES, more);
}

/// The same, so many of them.
fn give_some(data: &Path, number: u8, name: &str, count: usize, more: &Value) {
    let device = |slot: usize| {
        let mut device = json!({
            "uuid": format!("SIM-{name}-{slot}"), "model": "Nave Simulated", "vram": 1 << 30,
            "ops_per_s": 1 << 26, "bytes_per_s": 1 << 19, "reads_per_s": 1 << 17,
            "hashes_per_s": 1 << 19, "return_bytes_per_s": 1 << 18,
        });
        let fields = device.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        device
    };
    let devices: Vec<Value> = (0..count).map(device).collect();
    let dir = data.join(if number == 1 { "agent".to_owned() } else { format!("agent-{number}") });
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join("simulated-devices.json"), serde_json::to_vec(&devices).expect("JSON"))
        .expect("written");
}

/// Why a host is refused.
fn refused(market: &Market, host: &str) -> String {
    let host = market.await_host(host, "refused");
    let reason = &host["reason"];
    format!("{}: {}", reason["code"].as_str().expect("a code"), reason["message"].as_str().expect("words"))
}

#[test]
fn gpus_that_are_not_what_they_seem_are_refused_beside_an_honest_host() {
    let arguments = [&["--hosts", "4", "--simulated-devices", "8"], &ENFORCED[..]].concat();
    let market = Market::simulated_after(&arguments, |data| {
        give(data, 1, "honest", &json!({}));
        give(data, 2, "skipping", &json!({"dishonesty": [{"skip": {"per_mille": 50}}]}));
        give(data, 3, "shared", &json!({"dishonesty": [{"shared": {"with": "one"}}]}));
        give(data, 4, "replaying", &json!({"replays": true}));
    });
    let Some(market) = market else { return };
    let hosts = market.hosts();
    let [honest, skipping, shared, replaying] = [0, 1, 2, 3].map(|number: usize| hosts[number].id());

    market.await_host(honest, "ready");
    let why = refused(&market, skipping);
    assert!(why.starts_with("evidence_wrong: ") && why.contains("SIM-skipping"), "{why}");
    let why = refused(&market, shared);
    assert!(why.starts_with("device_mismatch: ") && why.contains("SIM-shared"), "{why}");

    market.await_host(replaying, "ready");
    succeed(market.naved().args(["admin", "test", replaying]));
    let why = refused(&market, replaying);
    assert!(why.starts_with("binding_wrong: "), "{why}");

    assert_eq!(market.listed(honest).expect("it is listed")["state"], "ready");
    let shown = succeed(&mut market.nave(&["hosts"]));
    assert!(shown.contains(&format!("{DEVICES} x Nave Simulated (simulated)")), "{shown}");
}

#[test]
fn local_hosts_with_simulated_gpus_become_ready_and_keep_them() {
    let arguments = [&["--hosts", "2", "--simulated-devices", "2"], &ENFORCED[..]].concat();
    let Some(market) = Market::simulated(&arguments) else { return };
    let uuids = || -> Vec<String> {
        let hosts = market.all_hosts();
        let devices = hosts.iter().flat_map(|host| host["inventory"]["devices"].as_array().expect("devices"));
        devices.map(|device| device["uuid"].as_str().expect("text").to_owned()).collect()
    };
    assert!(market.all_hosts().iter().all(|host| host["state"] == "ready"), "{:?}", market.all_hosts());
    let before = uuids();
    assert!(before.len() == 4 && before.iter().all(|uuid| uuid.starts_with("SIM-")), "{before:?}");
    let limits = market.up_json()["limits"].to_string();
    assert!(limits.contains("simulated GPUs"), "{limits}");
    let image = format!("example.org/none@sha256:{}", "0".repeat(64));
    let job = market.submit(
        &["--gpus", "2", "--trust", "verified,unrated", "--cpu", "0.1", "--image", &image],
        &["true"],
    );
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "jobs that are acted out get simulated GPUs: {done}");
    let receipt = succeed(&mut market.nave(&["receipt", &job]));
    assert!(receipt.contains("(simulated)"), "{receipt}");
    market.down();
    market.up();
    wait_for("the same devices to be there", || (uuids() == before).then_some(()));
}

#[test]
fn a_gpu_in_slices_is_proven_slice_by_slice_and_goes_to_jobs_that_take_what_nobody_can_rate() {
    let slice = |number: usize| json!({"uuid": format!("SIM-slice-{number}"), "profile": "1g.256mb", "milli": 250, "vram": 1 << 28});
    let slices: Vec<Value> = (0..4).map(slice).collect();
    let arguments = [&["--simulated-devices", "1"], &ENFORCED[..]].concat();
    let market = Market::simulated_after(&arguments, |data| {
        give_some(data, 1, "cut", 1, &json!({"division": {"slices": slices}}));
    });
    let Some(market) = market else { return };
    let host = market.await_host(market.hosts()[0].id(), "ready");
    assert_eq!(host["trust"], "unrated");
    let image = format!("example.org/none@sha256:{}", "0".repeat(64));
    let asked = ["--share", "0.2", "--vram", "200MiB", "--cpu", "0.1", "--image", &image];
    let waits = market.submit(&asked, &["true"]);
    let job = market.submit(&[&asked[..], &["--trust", "verified,unrated"]].concat(), &["true"]);
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    let receipt = succeed(&mut market.nave(&["receipt", &job]));
    assert!(receipt.contains("SIM-slice-0 (simulated)"), "{receipt}");
    assert_eq!(market.job(&waits)["state"], "queued", "nobody sells it a slice as verified");
}
