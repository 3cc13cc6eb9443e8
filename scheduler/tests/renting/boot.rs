//! What a rented machine boots with, on images with and without what it needs. Programs are doubles that record how they
//! are called; the shell and its script are real.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, fs::symlink, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use nave_scheduler::cloud::boot::{Program, Programs, script};
use tempfile::TempDir;

const TICKET: &str = "nave1.ticket-0123456789.signature";
/// Of the machine that the test runs on, as far as they do nothing but compute.
const OWN: [&str; 7] = ["sha256sum", "mkdir", "chmod", "mv", "rm", "cat", "grep"];
/// What is fetched as the agent, which is a double, too: it joins, runs, and ends the script when it has run twice.
const AGENT: &str = r#"#!/bin/sh
echo "miner-agent $*" >>"$LOG"
env >>"$BOX/environment"
case $1 in
enrol) cat >>"$BOX/ticket" ;;
run) [ "$(grep -c 'miner-agent run' "$LOG")" -lt 2 ] || kill -TERM "$PPID" ;;
esac
"#;

/// A machine: its programs, what it may fetch, and what was done on it.
struct Machine {
    dir: TempDir,
    _engine: UnixListener,
}

impl Machine {
    /// A bare image, with apt and systemd.
    fn bare() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["bin", "installed"] {
            fs::create_dir(dir.path().join(name)).expect("made");
        }
        let engine = UnixListener::bind(dir.path().join("engine")).expect("a socket");
        let machine = Self { dir, _engine: engine };
        for name in OWN {
            symlink(which(name), machine.bin().join(name)).expect("linked");
        }
        machine.double("id", "echo 0");
        machine.double("sleep", "");
        machine.double("dpkg", "");
        machine.double("systemctl", "mv \"$BOX/engine\" \"$NAVE_AGENT_DOCKER\"");
        // Reads what it is given, as package scripts may; fails as often as the test says; installs what is asked for.
        machine.double(
            "apt-get",
            "cat >/dev/null; umask >>\"$BOX/umask\"\n\
             case \" $* \" in *' update '*) [ ! -e \"$BOX/stale\" ]; exit ;; esac\n\
             if [ -s \"$BOX/locked\" ]; then sed -i 1d \"$BOX/locked\"; exit 100; fi\n\
             for package in \"$@\"; do\n\
             case $package in docker.io) set -- dockerd ;; nftables) set -- nft ;; iproute2) set -- ip ;;\n\
             e2fsprogs) set -- mkfs.ext4 ;; curl) set -- curl ;; *) continue ;; esac\n\
             mv \"$BOX/installed/$1\" \"$BOX/bin/$1\"\ndone",
        );
        symlink(which("sed"), machine.bin().join("sed")).expect("linked");
        for name in ["dockerd", "nft", "ip", "mkfs.ext4", "curl"] {
            machine.write(&machine.path("installed").join(name), FETCH);
        }
        machine.write(&machine.path("agent"), AGENT);
        machine.write(&machine.path("prover"), "#!/bin/sh\n");
        machine
    }

    /// An image that has all that is needed.
    fn whole() -> Self {
        let machine = Self::bare();
        for name in ["dockerd", "nft", "ip", "mkfs.ext4"] {
            machine.double(name, "");
        }
        machine.write(&machine.bin().join("miner-agent"), AGENT);
        machine.double("nave-prover", "");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bin(&self) -> PathBuf {
        self.path("bin")
    }

    fn write(&self, path: &Path, text: &str) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("made to run");
    }

    /// A program that records how it is called, and then does this.
    fn double(&self, name: &str, body: &str) {
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>\"$LOG\"\n{body}\n");
        self.write(&self.bin().join(name), &text);
    }

    fn programs(&self) -> Programs {
        let program = |name: &str| {
            let sum = Command::new("sha256sum").arg(self.path(name)).output().expect("a sum");
            let sha256 = String::from_utf8_lossy(&sum.stdout).chars().take(64).collect();
            Program { url: format!("https://files.example/{name}"), sha256 }
        };
        Programs { agent: program("agent"), prover: program("prover") }
    }

    /// Boots it; the script is given to the shell by its input, as some clouds do.
    fn boot(&self, programs: &Programs) -> Output {
        let script = script(TICKET, programs).expect("a script");
        let own = format!("{}:", self.bin().display());
        let places = [
            ("PATH=${PATH:-}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PATH=$PATH"),
            ("/usr/local/bin", own.trim_end_matches(':')),
            ("/etc/ssl/certs/ca-certificates.crt", "/nowhere"),
        ];
        let text = places.into_iter().fold(script.reveal().to_owned(), |text, (place, here)| {
            assert!(text.contains(place), "{place}");
            text.replace(place, here)
        });
        fs::write(self.path("script"), text).expect("written");
        Command::new("/bin/sh")
            .env_clear()
            .env("PATH", self.bin())
            .env("BOX", self.dir.path())
            .env("LOG", self.path("log"))
            .env("NAVE_AGENT_DOCKER", self.path("docker.sock"))
            .stdin(fs::File::open(self.path("script")).expect("a script"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .expect("a shell")
    }

    /// What was called, without what only passes time.
    fn calls(&self) -> Vec<String> {
        let log = self.read("log");
        log.lines().filter(|line| !line.starts_with("sleep ")).map(str::to_owned).collect()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

/// Fetches what the URL ends with.
const FETCH: &str = "#!/bin/sh\necho \"$0 $*\" >>\"$LOG\"\n\
                     while [ $# -gt 1 ]; do [ \"$1\" != -o ] || to=$2; shift; done\n\
                     [ -z \"${to:-}\" ] || cat \"$BOX/${1##*/}\" >\"$to\"\n";

fn which(name: &str) -> PathBuf {
    let places = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(name));
    places.into_iter().find(|place| place.exists()).unwrap_or_else(|| panic!("no {name}"))
}

/// Where the first of these calls is.
fn at(calls: &[String], start: &str) -> usize {
    let found = calls.iter().position(|call| call.contains(start));
    found.unwrap_or_else(|| panic!("no {start} in {calls:#?}"))
}

#[test]
fn on_a_bare_image_all_that_is_needed_is_installed_before_the_agent_joins_and_runs() {
    let machine = Machine::bare();
    let output = machine.boot(&machine.programs());
    let calls = machine.calls();
    let install = at(&calls, "install --no-install-recommends");
    assert!(
        calls[install].ends_with("docker.io nftables iproute2 e2fsprogs curl ca-certificates"),
        "{}",
        calls[install]
    );
    let order =
        ["dpkg --configure -a", " update", "install --no", "systemctl start docker", "/prover", "/agent"];
    let order: Vec<_> =
        order.into_iter().chain(["miner-agent enrol - --wait 300", "miner-agent run"]).collect();
    let places: Vec<_> = order.iter().map(|start| at(&calls, start)).collect();
    assert!(places.is_sorted(), "{calls:#?} {output:?}");
    assert_eq!(machine.read("ticket"), TICKET);
    assert!(machine.read("umask").lines().all(|mask| mask == "0022"), "others read what packages write");
}

#[test]
fn an_image_that_has_everything_installs_and_fetches_nothing() {
    let machine = Machine::whole();
    machine.boot(&Programs::default());
    let expected = [
        "id -u",
        "systemctl start docker",
        "miner-agent enrol - --wait 300",
        "miner-agent run",
        "miner-agent run",
    ];
    assert_eq!(machine.calls(), expected, "and an agent that ends is started again");
}

#[test]
fn packages_that_others_hold_and_lists_that_are_not_fresh_are_no_end() {
    let machine = Machine::bare();
    fs::write(machine.path("locked"), "once\ntwice\nthrice\n").expect("written");
    fs::write(machine.path("stale"), "").expect("written");
    let output = machine.boot(&machine.programs());
    let calls = machine.calls();
    let tries = calls.iter().filter(|call| call.contains("install --no")).count();
    assert_eq!(tries, 4, "{output:?}");
    assert!(calls.iter().all(|call| !call.starts_with("apt-get") || call.contains("DPkg::Lock::Timeout=")));
    at(&calls, "miner-agent run");
}

#[test]
fn what_is_fetched_and_is_something_else_is_never_run() {
    let machine = Machine::bare();
    let meant = machine.programs();
    machine.write(&machine.path("agent"), "#!/bin/sh\ntouch \"$BOX/owned\"\n");
    let output = machine.boot(&meant);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("miner-agent is not the program that was meant"), "{said}");
    assert!(machine.calls().iter().all(|call| !call.contains("miner-agent enrol")));
    let left = ["owned", "bin/miner-agent", "bin/miner-agent.new"].map(|name| machine.path(name).exists());
    assert_eq!(left, [false; 3]);
}

#[test]
fn the_ticket_is_in_no_list_of_processes_no_environment_and_no_log() {
    let machine = Machine::bare();
    let output = machine.boot(&machine.programs());
    assert_eq!(machine.read("ticket"), TICKET, "{output:?}");
    for text in [machine.read("log"), machine.read("environment"), format!("{output:?}")] {
        assert!(!text.contains(TICKET), "{text}");
    }
}

#[test]
fn who_is_not_root_is_told_so() {
    let machine = Machine::bare();
    machine.double("id", "echo 1000");
    let output = machine.boot(&machine.programs());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("only root"), "{output:?}");
    assert_eq!(machine.calls(), ["id -u"]);
}
