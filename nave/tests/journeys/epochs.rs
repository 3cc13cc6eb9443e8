//! Service levels become weights, which anyone computes again.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use serde_json::Value;

use crate::support::{Market, root, succeed, wait_for};

/// The newest confirmed epochs with what came of the market's one miner, by number.
fn earnings(market: &Market) -> BTreeMap<i64, Value> {
    let confirmed: Vec<i64> = market
        .json(&["epoch", "list", "-n", "200"])
        .as_array()
        .expect("epochs")
        .iter()
        .filter(|epoch| epoch["state"] == "confirmed")
        .filter_map(|epoch| epoch["epoch"].as_i64())
        .collect();
    let told = succeed(&mut market.miner(&["earnings", "-n", "200", "--json"]));
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let items = told["items"].as_array().expect("epochs").iter();
    let of = |item: &Value| item["epoch"].as_i64().map(|epoch| (epoch, item["pay"].clone()));
    items.filter_map(of).filter(|(epoch, _)| confirmed.contains(epoch)).collect()
}

/// The bundles of all epochs up to one.
fn bundles(market: &Market, last: i64) -> Vec<PathBuf> {
    let fetch = |epoch: i64| {
        let file = market.data().join(format!("bundle-{epoch}.jsonl.gz"));
        let name = file.display().to_string();
        succeed(&mut market.nave(&["epoch", "evidence", &epoch.to_string(), "-o", &name]));
        file
    };
    (1..=last).map(fetch).collect()
}

fn in_python(bundles: &[PathBuf]) -> Command {
    let mut audit = Command::new("python3");
    audit.arg(root().join("sdk/python/nave_audit.py")).args(bundles);
    audit
}

#[test]
fn a_host_that_goes_down_lowers_its_miners_weights_and_anyone_computes_that_again() {
    let offer = [
        "--hosts", "3", "--epoch", "5s", "--fence", "3s", "--report", "1s", "--cpu", "1.8", "--memory",
        "768MiB",
    ];
    let Some(market) = Market::docker(&offer) else { return };
    market.run(&["--cpu", "0.5", "--memory", "128MiB"], &["python3", "-c", "import time; time.sleep(3)"]);
    let good = wait_for("an epoch that pays", || {
        earnings(&market).into_values().find(|pay| pay["weight"].as_i64() > Some(0))
    });

    let long = "import time; time.sleep(20)";
    let job = market.submit(&["--cpu", "0.5", "--memory", "128MiB"], &["python3", "-c", long]);
    let running = market.await_job(&job, "charged", |job| job["attempts"][0]["charged"].as_i64() > Some(0));
    let host = running["attempts"][0]["host"].as_str().expect("a host").to_owned();
    market.host(&host).set_link("down");
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["attempts"][0]["charged"], 0, "what was lost costs nothing: {done}");

    let (epoch, bad) = wait_for("an epoch that tells of the breach", || {
        earnings(&market).into_iter().find(|(_, pay)| pay["breaches"].as_i64() > Some(0))
    });
    assert!(bad["weight"].as_i64() < good["weight"].as_i64(), "{bad} after {good}");
    assert!(bad["penalty"].as_i64() > Some(0) && bad["carry"].as_i64() < good["carry"].as_i64(), "{bad}");
    let receipt = succeed(&mut market.nave(&["receipt", &job]));
    assert!(
        receipt.contains("refund") && receipt.contains("host lost"),
        "the customer sees what came back: {receipt}"
    );
    let explained = succeed(&mut market.miner(&["earnings", &epoch.to_string(), "--explain"]));
    assert!(
        explained.contains("host lost") && explained.contains("blamed on the host, shown by its"),
        "{explained}"
    );

    let bundles = bundles(&market, epoch);
    let names: Vec<String> = bundles.iter().map(|bundle| bundle.display().to_string()).collect();
    let mut arguments = vec!["audit"];
    arguments.extend(names.iter().map(String::as_str));
    let said = succeed(&mut market.nave(&arguments));
    assert_eq!(said.matches("every hash and signature fits").count(), bundles.len(), "{said}");
    succeed(&mut in_python(&bundles));
    let lines = succeed(Command::new("gzip").arg("-dc").arg(bundles.last().expect("a bundle")));
    let told = |kind: &str, word: &str| {
        lines.lines().any(|line| line.contains(&format!("\"kind\":\"{kind}\"")) && line.contains(word))
    };
    assert!(told("event", "host_lost") && told("pay", "\"breaches\":1"), "{lines}");

    let forged = market.data().join("forged.jsonl");
    fs::write(&forged, lines.replacen("\"breaches\":1", "\"breaches\":0", 1)).expect("write");
    let forged_name = forged.display().to_string();
    assert_eq!(market.nave(&["audit", &forged_name]).status().expect("run").code(), Some(105));
    assert_eq!(in_python(&[forged]).status().expect("run").code(), Some(1));
    market.audit();
}
