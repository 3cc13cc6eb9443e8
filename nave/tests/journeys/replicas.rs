//! Forged results: replicas show them, and a dispute has their host tested.

use std::{fs, process::Stdio};

use serde_json::Value;

use crate::support::{Market, succeed, wait_for};

const OFFER: [&str; 6] = ["--cpu", "0.5", "--memory", "64MiB", "--disk", "1GiB"];
/// Acted out, and never fetched.
const IMAGE: &str =
    "example.org/none@sha256:0000000000000000000000000000000000000000000000000000000000000000";
/// Another miner than that of the local hosts.
const BOB: [&str; 2] = ["--hotkey-uri", "//Bob"];

/// Two replicas of a job that leaves a file with this text, and runs for so long.
fn replicas(text: &str, ms: &str) -> Vec<String> {
    let env = [format!("NAVE_SIM_OUT={text}"), format!("NAVE_SIM_MS={ms}")];
    let small = ["--cpu", "0.1", "--memory", "32MiB", "--disk", "32MiB", "--image", IMAGE];
    let run = ["run", "--json", "--replicas", "2", "-e", &env[0], "-e", &env[1]];
    run.iter().chain(&small).chain(&["--", "true"]).map(|word| (*word).to_owned()).collect()
}

fn hosts(report: &Value) -> Vec<&str> {
    let replicas = report["replicas"].as_array().expect("replicas");
    replicas.iter().filter_map(|replica| replica["job"]["attempts"][0]["host"].as_str()).collect()
}

#[test]
fn a_forged_result_is_shown_by_replicas_and_a_dispute_has_its_host_tested() {
    let Some(market) = Market::simulated(&["--hosts", "2", "--report", "1s"]) else { return };
    let ticket = succeed(market.nave(&["miner", "ticket", "--name", "forger"]).args(BOB));
    let mut forger = market.stranger_with(&ticket, "forger", &OFFER);
    market.await_host(&forger.id, "ready");

    let arguments = replicas("42", "100");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let honest: Value = serde_json::from_str(&succeed(&mut market.nave(&arguments))).expect("a document");
    assert_eq!(honest["agree"], true, "{honest}");
    let by = hosts(&honest);
    assert!(by.contains(&forger.id.as_str()) && by[0] != by[1], "one with each miner: {by:?}");

    let arguments = replicas("43", "8000");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let run = market.nave(&arguments).stdout(Stdio::piped()).spawn().expect("run nave");
    let plays = forger.data.join("simulated/plays.json");
    let runs = || fs::read_to_string(&plays).is_ok_and(|plays| plays.contains("\"result\":\"43\""));
    wait_for("the forger to run its replica", || runs().then_some(()));
    market.tamper(&mut forger, &OFFER, |_| {
        let honest = fs::read_to_string(&plays).expect("what it runs");
        fs::write(&plays, honest.replace("\"result\":\"43\"", "\"result\":\"41\"")).expect("forged");
    });
    let output = run.wait_with_output().expect("nave ends");
    let forged: Value = serde_json::from_slice(&output.stdout).expect("a document");
    assert_eq!((output.status.code(), &forged["agree"]), (Some(107), &Value::Bool(false)), "{forged}");
    let replicas = forged["replicas"].as_array().expect("replicas");
    let of_forger = replicas.iter().find(|one| one["job"]["attempts"][0]["host"] == forger.id.as_str());
    let job = of_forger.expect("the forger's")["job"]["job"].as_str().expect("an id").to_owned();

    let opened = market.json(&["dispute", &job, "--reason", "41 is not 43"]);
    assert_eq!(opened["host"], forger.id.as_str(), "{opened}");
    let disputed = wait_for("the forger to be tested", || {
        let dispute = market.json(&["dispute", &job])[0].clone();
        dispute["verdict"].is_string().then_some(dispute)
    });
    // Its machine computes rightly: it lies about results only.
    assert_eq!(disputed["state"], "passed", "{disputed}");
    let owner = succeed(market.nave(&["miner", "verdicts", "forger", "--json"]).args(BOB));
    let owner: Value = serde_json::from_str(&owner).expect("a document");
    let verdicts = owner["items"].as_array().expect("verdicts");
    let of_dispute = verdicts.iter().filter(|verdict| verdict["cause"] == "dispute").count();
    assert!(of_dispute > 1, "its owner sees why: {owner}");
    assert!(!owner.to_string().contains("41 is not 43"), "and not what the customer says");
    market.audit();
}
