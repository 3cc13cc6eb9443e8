//! `miner-agent verify`: what is tested of a host, what came of it and what to do about it.

mod common;

use std::process::Output;

use common::{Agent, Plane, until};
use nave_domain::{Timestamp, host::HostState};
use nave_sdk::wire::enrol::StateReason;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

const WHY: &str = "claims 16 cores, proved 1.9 cores in 2.100 s";

fn verdict(plane: &Plane, n: u8, kind: &str, code: &str, ruling: &Value) -> Value {
    json!({
        "challenge": format!("challenge_{n:032x}"), "host": plane.host, "kind": kind, "cause": "enrolment",
        "shadow": false, "beside_job": false, "drawn_at": "2026-09-21T14:12:20Z",
        "decided_at": "2026-09-21T14:12:30Z", "code": code, "ruling": ruling, "opening": "kept",
        "appeal": null, "ban": null, "actions": if code == "passed" { json!([]) } else { json!(["appeal"]) }
    })
}

/// A host that has failed one test and passed another.
fn begin() -> (TempDir, Plane) {
    let (dir, plane) = (tempfile::tempdir().expect("a directory"), Plane::start());
    plane.join(dir.path());
    let failed = json!({ "failed": { "code": "cpu_overclaimed", "message": WHY } });
    let memory = json!({ "memory": { "memory": 1 << 30, "fill_ms": 900, "reads_ms": 300, "reads_per_s": 27_000_000 } });
    plane.kept().verdicts = json!([
        verdict(&plane, 2, "cpu", "cpu_overclaimed", &failed),
        verdict(&plane, 1, "memory", "passed", &json!({ "passed": memory })),
    ]);
    (dir, plane)
}

async fn verify(dir: &TempDir, plane: &Plane, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_miner-agent"));
    command.args(["verify", "--without-mesh", &plane.url, "--data"]).arg(dir.path()).args(more);
    command.output().await.expect("run the agent")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_refused_host_says_why_with_numbers_and_what_to_do_about_it() {
    let (dir, plane) = begin();
    let _agent = Agent::start(&plane, dir.path(), &["--runtime", "simulated"]);
    plane.change(|spec| {
        spec.state = HostState::Refused;
        let (code, message) = ("cpu_overclaimed".into(), WHY.into());
        spec.reason = Some(StateReason { code, message, since: Timestamp(0) });
    });
    until("the agent to hear it", || {
        let status = std::fs::read_to_string(dir.path().join("agent/status.json")).unwrap_or_default();
        status.contains("refused")
    })
    .await;
    let said = verify(&dir, &plane, &[]).await;
    assert!(!said.status.success(), "it takes no jobs");
    let said = text(&said);
    assert!(said.contains(&format!("state    refused: {WHY} (cpu_overclaimed)")), "{said}");
    assert!(said.contains("do       offer fewer cores"), "{said}");
    assert!(said.contains("computing power: claims 16 cores"), "{said}");
    assert!(said.contains("nave miner appeal host_"), "{said}");
    assert!(!said.contains("27.00 M reads/s"), "what was passed is said when everything is: {said}");
    let all = text(&verify(&dir, &plane, &["--explain"]).await);
    assert!(
        all.contains("memory: passed: 1 GiB filled in 900 ms and read in 300 ms, 27.00 M reads/s"),
        "{all}"
    );
    let document: Value =
        serde_json::from_slice(&verify(&dir, &plane, &["--explain", "--json"]).await.stdout).expect("JSON");
    assert_eq!(
        (&document["state"], &document["verdicts"][0]["code"]),
        (&json!("refused"), &json!("cpu_overclaimed"))
    );
    assert!(document["remedy"].as_str().is_some_and(|remedy| remedy.starts_with("offer fewer cores")));
}

#[tokio::test]
async fn while_the_market_is_away_a_host_says_so_and_what_it_was_told_before() {
    let (dir, plane) = begin();
    plane.away(true);
    let said = text(&verify(&dir, &plane, &["--explain"]).await);
    assert!(said.contains("it does not tell now") && said.contains("none that is known"), "{said}");
    plane.away(false);
    assert!(!text(&verify(&dir, &plane, &[]).await).contains("does not tell now"));
    plane.away(true);
    let said = text(&verify(&dir, &plane, &["--explain"]).await);
    assert!(said.contains("it does not tell now") && said.contains(WHY), "{said}");
    assert!(said.contains("state    not known"), "{said}");
}
