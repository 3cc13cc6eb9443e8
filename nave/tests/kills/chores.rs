//! What owners and the operator do meanwhile: hosts join and leave, keys are changed, agents
//! are upgraded. Whoever is killed over it is started again.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    plan::Chore,
    support::{Host, Market, succeed},
};

/// What a new version of the agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Works,
    Ends,
    /// Has no time to reach the control plane.
    IsLate,
}

/// The release key of a run.
pub struct Releases {
    dir: tempfile::TempDir,
    public: String,
    count: u32,
}

impl Releases {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let naved = Command::new(env!("CARGO_BIN_EXE_naved"))
            .args(["admin", "release", "keygen"])
            .arg(dir.path().join("key"))
            .output()
            .expect("make a release key");
        let public = String::from_utf8(naved.stdout).expect("text").trim().to_owned();
        Self { dir, public, count: 0 }
    }

    pub fn key(&self) -> &str {
        &self.public
    }

    /// Publishes the next version: this agent under another name, or one that does not work.
    fn publish(&mut self, market: &Market, program: Program) {
        self.count += 1;
        let version = format!("9.0.{}", self.count);
        let agent = PathBuf::from(env!("CARGO_BIN_EXE_naved")).with_file_name("miner-agent");
        let run = format!("NAVE_AGENT_VERSION={version} exec {} \"$@\"", agent.display());
        let text = match program {
            Program::Works => format!("#!/bin/sh\n{run}\n"),
            Program::Ends => "#!/bin/sh\nexit 1\n".to_owned(),
            Program::IsLate => format!("#!/bin/sh\nNAVE_AGENT_TRIAL_MS=0 {run}\n"),
        };
        let program = self.dir.path().join(&version);
        fs::write(&program, text).expect("a program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
        let target = nave_miner_agent::upgrade::target();
        let about = ["--version", &version, "--target", &target];
        let sign = |action: &str| {
            let mut command = market.naved();
            command.args(["admin", "release", action]).arg(&program).args(about);
            command
        };
        let signature = succeed(sign("sign").arg("--key").arg(self.dir.path().join("key")));
        until_done(|| {
            let mut publish = sign("publish");
            publish.args(["--signature", signature.trim(), "--release-key", &self.public]);
            publish
        });
    }
}

pub fn carry_out(market: &Market, hosts: &[Host], releases: &mut Releases, chore: Chore, which: u64) {
    let host = &hosts[usize::try_from(which % hosts.len() as u64).expect("small")];
    match chore {
        Chore::Join => join(market, which),
        Chore::Rotate => {
            let agent = || {
                let mut command = market.program("miner-agent");
                command.args(["rotate", "--data"]).arg(host.data());
                command
            };
            until_done(agent);
        }
        Chore::Upgrade => releases.publish(market, Program::Works),
        Chore::BadUpgrade => releases.publish(market, Program::Ends),
        Chore::SlowUpgrade => releases.publish(market, Program::IsLate),
    }
}

/// A host joins, however often it or the gateway is killed over it, once; then it leaves.
fn join(market: &Market, which: u64) {
    let name = format!("joiner-{which:016x}");
    let ticket = until_done(|| market.miner(&["ticket", "--name", &name]));
    let dir = tempfile::tempdir().expect("a directory");
    until_done(|| {
        let mut enrol = market.program("miner-agent");
        enrol.args(["enrol", ticket.trim(), "--cpu", "0.1", "--memory", "64MiB", "--data"]).arg(dir.path());
        enrol
    });
    let listed = until_done(|| market.miner(&["hosts", "--json"]));
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let all = listed.as_array().or(listed["items"].as_array()).expect("hosts");
    let ours: Vec<_> = all.iter().filter(|host| host["name"] == name.as_str()).collect();
    assert_eq!(ours.len(), 1, "one ticket, one host: {ours:?}");
    let host = ours[0]["host"].as_str().expect("an id");
    until_done(|| market.miner(&["leave", host, "-y"]));
}

/// Runs a command until it succeeds: it, or who answers it, may be killed.
fn until_done(mut command: impl FnMut() -> Command) -> String {
    let began = Instant::now();
    loop {
        let output = command().output().expect("run a command");
        if output.status.success() {
            return String::from_utf8(output.stdout).expect("text");
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(began.elapsed() < Duration::from_secs(90), "{:?} does not succeed: {said}", command());
        thread::sleep(Duration::from_millis(300));
    }
}
