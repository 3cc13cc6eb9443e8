//! Results that somebody doubts: replicas compare them, and a dispute has their host tested.

use serde_json::Value;

use crate::support::{Market, succeed, wait_for};

const OFFER: [&str; 6] = ["--cpu", "0.5", "--memory", "64MiB", "--disk", "1GiB"];
/// Acted out, and never fetched.
const IMAGE: &str =
    "example.org/none@sha256:0000000000000000000000000000000000000000000000000000000000000000";
/// Another miner than that of the local hosts.
const BOB: [&str; 2] = ["--hotkey-uri", "//Bob"];
/// What jobs take, and the result that they are acted out with.
const SMALL: [&str; 10] =
    ["--cpu", "0.1", "--memory", "32MiB", "--disk", "32MiB", "--image", IMAGE, "-e", "NAVE_SIM_OUT=42"];

fn hosts(report: &Value) -> Vec<&str> {
    let replicas = report["replicas"].as_array().expect("replicas");
    replicas.iter().filter_map(|replica| replica["job"]["attempts"][0]["host"].as_str()).collect()
}

#[test]
fn replicas_run_with_several_miners_and_a_dispute_has_its_host_tested() {
    let Some(market) = Market::simulated(&["--hosts", "2", "--report", "1s"]) else { return };
    let ticket = succeed(market.nave(&["miner", "ticket", "--name", "other"]).args(BOB));
    let other = market.stranger_with(&ticket, "other", &OFFER);
    market.await_host(&other.id, "ready");

    let mut run = market.nave(&["run", "--json", "--replicas", "2"]);
    let honest: Value =
        serde_json::from_str(&succeed(run.args(SMALL).args(["--", "true"]))).expect("a document");
    assert_eq!(honest["agree"], true, "{honest}");
    let by = hosts(&honest);
    assert!(by.contains(&other.id.as_str()) && by[0] != by[1], "one with each miner: {by:?}");

    let replicas = honest["replicas"].as_array().expect("replicas");
    let of_other = replicas.iter().find(|one| one["job"]["attempts"][0]["host"] == other.id.as_str());
    let job = of_other.expect("the other miner's")["job"]["job"].as_str().expect("an id").to_owned();

    let opened = market.json(&["dispute", &job, "--reason", "41 is not 43"]);
    assert_eq!(opened["host"], other.id.as_str(), "{opened}");
    let disputed = wait_for("the other to be tested", || {
        let dispute = market.json(&["dispute", &job])[0].clone();
        dispute["verdict"].is_string().then_some(dispute)
    });
    assert_eq!(disputed["state"], "passed", "{disputed}");
    let owner = succeed(market.nave(&["miner", "verdicts", "other", "--json"]).args(BOB));
    let owner: Value = serde_json::from_str(&owner).expect("a document");
    let verdicts = owner["items"].as_array().expect("verdicts");
    let of_dispute = verdicts.iter().filter(|verdict| verdict["cause"] == "dispute").count();
    assert!(of_dispute > 1, "its owner sees why: {owner}");
    assert!(!owner.to_string().contains("41 is not 43"), "and not what the customer says");
    market.audit();
}

#[test]
fn a_forged_result_is_seen_by_comparing_it_and_by_nothing_else() {
    let Some(market) = Market::simulated(&["--hosts", "2", "--report", "1s"]) else { return };
    let ticket = succeed(market.nave(&["miner", "ticket", "--name", "forger"]).args(BOB));
    let forger = market.stranger_with(&ticket, "forger", &OFFER);
    market.await_host(&forger.id, "ready");
    std::fs::write(forger.data.join("simulated/forged.txt"), "43").expect("a file");

    let mut run = market.nave(&["run", "--json", "--replicas", "2"]);
    let output = run.args(SMALL).args(["--", "true"]).output().expect("run nave");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!(output.status.code(), Some(107), "{report}");
    assert_eq!(report["agree"], false, "{report}");
    let replicas = report["replicas"].as_array().expect("replicas");
    let of_forger = replicas.iter().find(|one| one["job"]["attempts"][0]["host"] == forger.id.as_str());
    let of_forger = of_forger.expect("one with each miner");
    assert_eq!(of_forger["job"]["exit_code"], 0, "its host says that all went well: {report}");

    // Who forges and computes rightly when it is tested passes.
    let job = of_forger["job"]["job"].as_str().expect("an id").to_owned();
    market.json(&["dispute", &job, "--reason", "6 times 7 is not 43"]);
    let disputed = wait_for("the forger to be tested", || {
        let dispute = market.json(&["dispute", &job])[0].clone();
        dispute["verdict"].is_string().then_some(dispute)
    });
    assert_eq!(disputed["host"], forger.id.as_str(), "{disputed}");
    assert_eq!(disputed["state"], "passed", "{disputed}");
    market.audit();
}
