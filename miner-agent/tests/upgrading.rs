//! Signed upgrades of a running agent, which do not touch what it runs.

mod common;

use std::time::Duration;

use common::{Agent, Plane, new_lease, order, release_key, until};
use nave_sdk::wire::{
    host::{Exit, Order},
    sign::{Release, SecretKey, SignedRelease, sha256},
};
use tempfile::TempDir;

/// A newer program: this one, under another version.
fn newer(version: &str) -> Vec<u8> {
    newer_with(version, "")
}

/// The same with one more variable.
fn newer_with(version: &str, variable: &str) -> Vec<u8> {
    let agent = env!("CARGO_BIN_EXE_miner-agent");
    format!("#!/bin/sh\nNAVE_AGENT_VERSION={version} {variable} exec {agent} \"$@\"\n").into_bytes()
}

fn signed(version: &str, bytes: &[u8], key: &SecretKey) -> SignedRelease {
    let release = Release {
        version: version.into(),
        target: nave_miner_agent::upgrade::target(),
        sha256: sha256(bytes),
        size: bytes.len() as u64,
    };
    SignedRelease { signature: key.sign(&release.bytes()), release }
}

struct Site {
    dir: TempDir,
    plane: Plane,
}

impl Site {
    fn begin() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), plane: Plane::start() }
    }

    fn agent(&self, env: &[(&str, &str)]) -> Agent {
        Agent::start_with(&self.plane, &self.dir.path().join("data"), &["--runtime", "simulated"], env)
    }

    fn offer(&self, version: &str, bytes: &[u8], key: &SecretKey) {
        self.plane.kept().releases.insert(version.into(), bytes.to_vec());
        let release = signed(version, bytes, key);
        self.plane.change(|spec| spec.release = Some(release));
    }

    fn version(&self) -> Option<String> {
        self.plane.kept().reports.last().map(|report| report.inventory.agent.clone())
    }

    async fn runs(&self, version: &str) {
        until(&format!("version {version} reports"), || self.version().as_deref() == Some(version)).await;
    }
}

fn play(ms: u32) -> Order {
    let mut order = order(&["train"]);
    order.env.insert("NAVE_SIM_MS".into(), ms.to_string());
    order.env.insert("NAVE_SIM_OUT".into(), "whole".into());
    order
}

const OWN: &str = nave_miner_agent::VERSION;

#[tokio::test]
async fn a_signed_release_takes_over_while_a_job_runs_and_the_job_is_whole() {
    let (site, lease) = (Site::begin(), new_lease());
    let agent = site.agent(&[]);
    site.plane.place(lease, play(4_000));
    site.plane.running(lease).await;
    let pid = agent.pid();
    site.offer("9.1.0", &newer("9.1.0"), &release_key());
    site.runs("9.1.0").await;
    assert_eq!(agent.pid(), pid, "it is the same process");
    let (exit, result) = site.plane.finished(lease).await;
    assert_eq!(exit, Exit::Code { code: 0 });
    assert!(result.is_some());
    assert_eq!(site.plane.text(lease).lines().count(), 1, "no output came twice");
    // Whoever starts the installed program again gets the newer one.
    agent.kill().await;
    site.plane.kept().reports.clear();
    let _again = site.agent(&[]);
    site.runs("9.1.0").await;
}

#[tokio::test]
async fn what_another_key_signed_or_what_was_changed_on_its_way_never_runs() {
    let site = Site::begin();
    let _agent = site.agent(&[]);
    site.runs(OWN).await;
    site.offer("9.1.0", &newer("9.1.0"), &SecretKey::generate().expect("a key"));
    // The right signature, and other bytes behind it.
    let release = signed("9.2.0", &newer("9.2.0"), &release_key());
    site.plane.kept().releases.insert("9.2.0".into(), newer("6.6.6"));
    site.plane.change(|spec| spec.release = Some(release));
    let bin = site.dir.path().join("data/agent/bin");
    until("it was fetched", || bin.join("fetched.part").exists()).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(site.version().as_deref(), Some(OWN));
    assert!(!bin.join("miner-agent-9.2.0").exists());
}

#[tokio::test]
async fn a_program_that_does_not_reach_the_control_plane_gives_its_place_back() {
    let site = Site::begin();
    site.plane.kept().deaf_to = Some("9.3.0".into());
    let _agent = site.agent(&[]);
    site.runs(OWN).await;
    site.offer("9.3.0", &newer_with("9.3.0", "NAVE_AGENT_TRIAL_MS=1500"), &release_key());
    let record = site.dir.path().join("data/agent/upgrade.json");
    let known = || std::fs::read_to_string(&record).unwrap_or_default();
    until("the new one is on trial", || known().contains("trying")).await;
    let before = site.plane.kept().reports.len();
    until("the old one is back", || site.plane.kept().reports.len() > before + 2).await;
    assert_eq!(site.version().as_deref(), Some(OWN));
    until("the new one is known to be bad", || known().contains("bad")).await;
}

#[tokio::test]
async fn a_program_that_crashes_at_its_start_is_given_up_and_the_installed_one_goes_on() {
    let site = Site::begin();
    let agent = site.agent(&[]);
    site.runs(OWN).await;
    site.offer("9.4.0", b"#!/bin/sh\nexit 7\n", &release_key());
    let _ = agent.ended().await;
    // What starts agents starts it again, and again.
    for _ in 0..2 {
        let _ = site.agent(&[]).ended().await;
    }
    site.plane.kept().reports.clear();
    let _agent = site.agent(&[]);
    site.runs(OWN).await;
    let known = std::fs::read_to_string(site.dir.path().join("data/agent/upgrade.json")).expect("known");
    assert!(known.contains("fallen") || known.contains("bad"), "{known}");
}
