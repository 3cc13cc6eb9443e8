//! The agent process with the simulated runtime against a small control plane.

mod common;

use std::time::Duration;

use common::{Agent, Plane, new_lease, order, until};
use nave_domain::{
    Bytes, LeaseId, MilliGpu, Millis, Timestamp,
    fraction::{Fraction, Share, Tenant},
    host::{HostState, Runtime},
};
use nave_sdk::wire::{
    enrol::StateReason,
    host::{Exit, LeaseReport, Order},
};
use serde_json::Value;
use tempfile::TempDir;

fn play(ms: u32, exit: i32, out: Option<&str>) -> Order {
    let mut order = order(&["train", "--epochs", "3 $(rm -rf /)"]);
    order.env.insert("NAVE_SIM_MS".into(), ms.to_string());
    order.env.insert("NAVE_SIM_EXIT".into(), exit.to_string());
    order.env.extend(out.map(|text| ("NAVE_SIM_OUT".into(), text.into())));
    order
}

fn begin() -> (TempDir, Plane, LeaseId) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let plane = Plane::start();
    (dir, plane, new_lease())
}

fn agent(plane: &Plane, dir: &TempDir) -> Agent {
    Agent::start(plane, &dir.path().join("data"), &["--runtime", "simulated"])
}

#[tokio::test]
async fn a_simulated_job_says_so_and_delivers_its_exit_code_and_result() {
    let (dir, plane, lease) = begin();
    let _agent = agent(&plane, &dir);
    plane.place(lease, play(50, 7, Some("forty-two")));
    let (exit, result) = plane.finished(lease).await;
    assert_eq!(exit, Exit::Code { code: 7 });
    assert_eq!(plane.text(lease), "simulated: would run [\"train\", \"--epochs\", \"3 $(rm -rf /)\"]\n");
    let files = plane.files(&result.expect("a result"));
    assert_eq!(files.get("simulated.txt").map(Vec::as_slice), Some(&b"forty-two"[..]));
    let kept = plane.kept();
    assert_eq!(kept.reports.last().map(|report| report.inventory.runtime.clone()), Some(Runtime::Simulated));
}

#[tokio::test]
async fn a_simulated_job_that_holds_more_of_its_share_than_it_asked_for_is_ended_and_says_so() {
    let (dir, plane, lease) = begin();
    let _agent = agent(&plane, &dir);
    let fraction = Fraction { milli: MilliGpu(125), vram: Bytes(8 << 30) };
    let share = Some(Share { fraction, tenant: Tenant(uuid::Uuid::from_u128(1)) });
    let play = |held: i64, ms| {
        let mut order = Order { share, devices: vec!["SIM-1".into()], ..play(ms, 0, None) };
        order.env.insert("NAVE_SIM_VRAM".into(), held.to_string());
        order
    };
    assert_eq!(plane.run(new_lease(), play(8 << 30, 50)).await, Exit::Code { code: 0 });
    let exit = plane.run(lease, play(9 << 30, 600_000)).await;
    assert_eq!(exit, Exit::OutOfGpuMemory { asked: Bytes(8 << 30), used: Bytes(9 << 30) });
}

#[tokio::test]
async fn a_finished_lease_is_reported_until_the_spec_drops_it() {
    let (dir, plane, lease) = begin();
    let _agent = agent(&plane, &dir);
    assert_eq!(plane.run(lease, play(10, 0, None)).await, Exit::Code { code: 0 });
    let heard = plane.kept().reports.len();
    until("it is reported again", || plane.kept().reports.len() > heard + 1).await;
    assert!(matches!(plane.last(lease), Some(LeaseReport::Finished { .. })));
    plane.close(lease);
    until("it is forgotten", || plane.last(lease).is_none()).await;
}

#[tokio::test]
async fn an_order_to_stop_ends_a_running_job() {
    let (dir, plane, lease) = begin();
    let _agent = agent(&plane, &dir);
    plane.place(lease, play(600_000, 0, None));
    plane.running(lease).await;
    plane.stop(lease);
    assert_eq!(plane.finished(lease).await.0, Exit::Stopped);
}

#[tokio::test]
async fn an_agent_killed_mid_job_adopts_it_and_sends_no_byte_twice() {
    let (dir, plane, lease) = begin();
    let first = agent(&plane, &dir);
    plane.place(lease, play(1_500, 0, Some("kept")));
    plane.running(lease).await;
    until("the log has come", || !plane.text(lease).is_empty()).await;
    first.kill().await;
    let _second = agent(&plane, &dir);
    let (exit, result) = plane.finished(lease).await;
    assert_eq!(exit, Exit::Code { code: 0 });
    assert!(result.is_some());
    assert_eq!(plane.text(lease).lines().count(), 1);
    let sent: usize = plane.kept().log_calls.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(sent, plane.text(lease).len(), "each byte went once");
}

#[tokio::test]
async fn a_control_plane_that_is_away_loses_nothing() {
    let (dir, plane, lease) = begin();
    let _agent = agent(&plane, &dir);
    plane.place(lease, play(400, 3, Some("late")));
    plane.running(lease).await;
    plane.away(true);
    tokio::time::sleep(Duration::from_millis(900)).await;
    plane.away(false);
    let (exit, result) = plane.finished(lease).await;
    assert_eq!(exit, Exit::Code { code: 3 });
    assert!(result.is_some() && !plane.text(lease).is_empty());
}

#[tokio::test]
async fn silence_beyond_the_fence_ends_the_job_even_across_a_restart() {
    let (dir, plane, lease) = begin();
    plane.change(|spec| spec.fence_ms = Millis(2_000));
    let first = agent(&plane, &dir);
    plane.place(lease, play(600_000, 0, None));
    plane.running(lease).await;
    plane.away(true);
    first.kill().await;
    // Without a control plane the next agent knows from the state directory alone.
    let _second = agent(&plane, &dir);
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    plane.away(false);
    assert_eq!(plane.finished(lease).await.0, Exit::Fenced);
}

#[tokio::test]
async fn a_fenced_or_finished_lease_is_never_run_again_by_a_restart() {
    let (dir, plane, lease) = begin();
    let first = agent(&plane, &dir);
    assert_eq!(plane.run(lease, play(10, 5, None)).await, Exit::Code { code: 5 });
    first.terminate().await;
    plane.kept().reports.clear();
    let _second = agent(&plane, &dir);
    until("the second agent reports", || plane.kept().reports.len() > 2).await;
    let kept = plane.kept();
    let finished = |report: &LeaseReport| matches!(report, LeaseReport::Finished { .. });
    assert!(kept.reports.iter().filter_map(|report| report.leases.get(&lease)).all(finished));
}

#[tokio::test]
async fn a_host_that_was_sent_away_begins_nothing_and_ends_what_runs_at_the_fence() {
    let (dir, plane, lease) = begin();
    plane.change(|spec| spec.fence_ms = Millis(3_000));
    let _agent = agent(&plane, &dir);
    plane.place(lease, play(600_000, 0, None));
    plane.running(lease).await;
    plane.kept().dismissed = true;
    until("it says so", || status(&dir, &["--json"]).contains("\"dismissed\": true")).await;
    until("the job is fenced", || status(&dir, &["--json"]).contains("fenced")).await;
}

#[tokio::test]
async fn a_refused_host_says_why_and_what_it_does_in_words() {
    let (dir, plane, lease) = begin();
    let _agent = agent(&plane, &dir);
    plane.place(lease, play(600_000, 0, None));
    plane.running(lease).await;
    let line = |line: &str| status(&dir, &[]).lines().any(|said| said == line);
    until("it says how it stands", || line("state    ready")).await;
    until("it says that its lease runs", || line(&format!("lease    {lease} runs"))).await;
    let reason = StateReason {
        code: "cpu_overclaimed".into(),
        message: "claims 16 cores, proved 1.9 in 2.1 s".into(),
        since: Timestamp(7),
    };
    plane.change(|spec| (spec.state, spec.reason) = (HostState::Refused, Some(reason.clone())));
    let why = "state    refused: claims 16 cores, proved 1.9 in 2.1 s (cpu_overclaimed)";
    until("it says why", || line(why)).await;
    let json: Value = serde_json::from_str(&status(&dir, &["--json"])).expect("JSON");
    assert_eq!(json["agent"]["reason"], serde_json::to_value(&reason).expect("JSON"));
    plane.change(|spec| (spec.state, spec.reason) = (HostState::Ready, None));
    until("the reason is gone with the refusal", || line("state    ready")).await;
}

/// What `miner-agent status` says.
fn status(dir: &TempDir, args: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_miner-agent"))
        .args(["status", "--data"])
        .arg(dir.path().join("data"))
        .args(args)
        .output()
        .expect("status runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn every_agent_process_has_its_own_session_and_counts_its_reports() {
    let (dir, plane, _) = begin();
    let first = agent(&plane, &dir);
    until("it reports", || plane.kept().reports.len() > 2).await;
    first.terminate().await;
    let before = plane.kept().reports.len();
    let _second = agent(&plane, &dir);
    until("the next one reports", || plane.kept().reports.len() > before).await;
    let kept = plane.kept();
    assert!(kept.reports[..before].windows(2).all(|two| two[0].sequence < two[1].sequence));
    assert_ne!(kept.reports[0].session, kept.reports[before].session);
}

#[tokio::test]
async fn an_order_of_a_control_plane_that_began_anew_is_taken() {
    let (dir, plane, lease) = begin();
    let _agent = agent(&plane, &dir);
    plane.change(|spec| spec.generation = 500);
    until("the agent has it", || plane.kept().reports.last().is_some_and(|r| r.generation == 501)).await;
    plane.change(|spec| {
        spec.generation = 2;
        spec.leases.insert(lease, play(10, 0, None));
    });
    assert_eq!(plane.finished(lease).await.0, Exit::Code { code: 0 });
}
