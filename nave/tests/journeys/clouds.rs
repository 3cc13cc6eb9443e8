//! Machines that are rented when no miner has room, and given back; the cloud is this machine.

use std::{cell::RefCell, collections::BTreeSet, fs, path::PathBuf, process::Command};

use nave_domain::Timestamp;
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;

use crate::support::{Market, kill, succeed, wait_for};

/// What nobody pulls where jobs are acted out.
const IMAGE: &str =
    "example.org/none@sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// A machine of the local cloud that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rented {
    name: String,
    /// Which part of this machine it is.
    number: u64,
}

impl Rented {
    /// Those that there are, whatever they do.
    fn all(market: &Market) -> Vec<String> {
        let entries = fs::read_dir(market.data().join("cloud/machines")).expect("a local cloud").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    fn running(market: &Market) -> Vec<Self> {
        let told = |name: String| {
            let place = Self::place(market, &name);
            let told: Value = serde_json::from_slice(&fs::read(place.join("told.json")).ok()?).ok()?;
            (told["does"] == "runs")
                .then(|| Self { number: told["number"].as_u64().expect("a number"), name })
        };
        Self::all(market).into_iter().filter_map(told).collect()
    }

    /// The one that is a host.
    fn of_host(market: &Market, host: &str) -> Self {
        let is_it = |rented: &Self| rented.host(market).as_deref() == Some(host);
        Self::running(market).into_iter().find(is_it).expect("a rented machine")
    }

    fn place(market: &Market, name: &str) -> PathBuf {
        market.data().join("cloud/machines").join(name)
    }

    /// Which host it is.
    fn host(&self, market: &Market) -> Option<String> {
        let file = market.data().join(format!("agent-{}/agent/enrolment.json", self.number));
        let enrolment: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        enrolment["place"]["host"].as_str().map(str::to_owned)
    }

    /// The cloud loses it.
    fn take_away(&self, market: &Market) {
        fs::write(Self::place(market, &self.name).join("returned"), "").expect("marked");
    }

    /// What of it is still on this machine.
    fn left(&self, market: &Market) -> Vec<String> {
        let marks = ["-", "_u", "_h"].map(|mark| format!("{mark}{}", self.number));
        let data = market.data().to_string_lossy().into_owned();
        let is_its = |what: &String| {
            let what = what.replace(&data, "");
            marks.iter().any(|mark| what.contains(mark))
        };
        let dirs = ["agent", "docker"].map(|name| market.data().join(format!("{name}-{}", self.number)));
        let dirs = dirs.iter().filter(|dir| dir.exists()).map(|dir| dir.display().to_string());
        let names = Self::all(market).into_iter().filter(|name| *name == self.name);
        left_on_machine(market).into_iter().filter(is_its).chain(dirs).chain(names).collect()
    }
}

/// Everything on the machine that bears this market's name: namespaces, links, mounts, loop devices, programs.
fn left_on_machine(market: &Market) -> BTreeSet<String> {
    let lines = |program: &str, arguments: &[&str]| -> Vec<String> {
        succeed(Command::new(program).args(arguments)).lines().map(str::to_owned).collect()
    };
    let slot = fs::read_to_string(market.data().join("slot")).expect("a slot");
    let slot: u8 = slot.trim().parse().expect("a number");
    let letters = [slot / 26, slot % 26].map(|n| char::from(b'a' + n)).iter().collect::<String>();
    let data = market.data().to_string_lossy().into_owned();
    let marks = [format!("nw{letters}"), format!("nv{letters}"), data];
    let second = |line: &String| line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let first = |line: &String| line.split_whitespace().next().unwrap_or_default().to_owned();
    let programs = fs::read_dir("/proc").expect("processes").flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    let found = lines("ip", &["-o", "link"]).iter().map(second).collect::<Vec<_>>().into_iter();
    let found = found.chain(lines("ip", &["netns", "list"]).iter().map(first).collect::<Vec<_>>());
    let found = found.chain(lines("losetup", &["--all"])).chain(lines("nft", &["list", "tables"]));
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1).map(str::to_owned));
    let found = found.chain(mounts.collect::<Vec<_>>()).chain(programs);
    found.filter(|what| marks.iter().any(|mark| what.contains(mark))).collect()
}

fn host_of(job: &Value, attempt: usize) -> String {
    job["attempts"][attempt]["host"].as_str().expect("a host").to_owned()
}

/// So many halves of what a local host offers, which is what a rented machine does.
fn cores(market: &Market, halves: i64) -> String {
    let milli = market.all_hosts()[0]["inventory"]["milli_cpu"].as_i64().expect("cores") * halves / 2;
    format!("{}.{:03}", milli / 1_000, milli % 1_000)
}

/// A job that runs to its end, and was in each state once, in their order.
fn served(market: &Market, job: &str) -> Value {
    let order = ["queued", "placed", "running", "succeeded"];
    let seen = RefCell::new(Vec::new());
    let done = market.await_job(job, "succeeded", |job| {
        let state = job["state"].as_str().expect("a state").to_owned();
        if seen.borrow().last() != Some(&state) {
            seen.borrow_mut().push(state.clone());
        }
        state == "succeeded"
    });
    let seen = seen.into_inner();
    let places = seen.iter().map(|state| order.iter().position(|known| known == state));
    let places: Vec<usize> = places.map(|place| place.expect("no other state")).collect();
    assert!(
        places.first() == Some(&0) && places.is_sorted(),
        "it waited first, and nothing was taken back: {seen:?}"
    );
    done
}

/// A machine was wanted for a job, joined, and only then had it; all of that within its boot time and what its tests take.
fn boots_before(market: &Market, done: &Value) {
    let machines = succeed(market.naved().args(["admin", "machines", "--json"]));
    let machines: Value = serde_json::from_str(&machines).expect("JSON");
    let [machine] = &machines["machines"].as_array().expect("machines")[..] else { panic!("{machines}") };
    let at = |value: &Value| serde_json::from_value::<Timestamp>(value.clone()).expect("a time");
    let attempt = &done["attempts"][0];
    assert_eq!((&machine["job"], &machine["host"]), (&done["job"], &attempt["host"]), "{machine}");
    let moments = [
        &done["created_at"],
        &machine["made_at"],
        &machine["enrolled_at"],
        &attempt["placed_at"],
        &attempt["started_at"],
    ]
    .map(at);
    assert!(moments.is_sorted(), "{moments:?}");
    let [asked, _, joined, placed, started] = moments;
    let boot = joined.since(asked).0;
    println!(
        "joined after {boot} ms, had the job {} ms later, which began after {} ms in all",
        placed.since(joined).0,
        started.since(asked).0
    );
    assert!(boot >= 3_000, "it boots for three seconds");
    assert!(started.since(asked).0 < 120_000, "its boot time and its tests: {moments:?}");
}

#[test]
fn what_no_miner_has_room_for_is_rented_until_a_cheaper_miner_has_and_goes_back_when_it_is_idle() {
    let cloud = ["--cloud", "local", "--cloud-boot", "3s", "--cloud-idle", "90s"];
    let arguments = [&["--hosts", "3", "--report", "1s"][..], &cloud].concat();
    let Some(market) = Market::simulated(&arguments) else { return };
    let limits = market.up_json()["limits"].to_string();
    assert!(limits.contains("its prices are made up"), "{limits}");
    let (whole, half) = (cores(&market, 2), cores(&market, 1));
    let small = |cpu: &str, span: &str| {
        let options = ["--cpu", cpu, "--memory", "64MiB", "--disk", "32MiB", "--image", IMAGE, "-e", span];
        market.submit(&options, &["true"])
    };
    let local: BTreeSet<String> = market.hosts().iter().map(|host| host.id().to_owned()).collect();
    let long = [0; 3].map(|_| small(&whole, "NAVE_SIM_MS=3600000"));
    let on = long.each_ref().map(|job| market.await_job(job, "running", |job| job["state"] == "running"));
    assert_eq!(
        on.iter().map(|job| host_of(job, 0)).collect::<BTreeSet<_>>(),
        local,
        "miners have no room now"
    );
    assert_eq!(Rented::all(&market), Vec::<String>::new(), "nothing is rented while miners do");

    let first = small(&half, "NAVE_SIM_MS=1000");
    let done = served(&market, &first);
    let rented = host_of(&done, 0);
    assert!(!local.contains(&rented), "{done}");
    boots_before(&market, &done);
    let machine = Rented::of_host(&market, &rented);
    let listed = market.listed(&rented).expect("it is listed");
    assert_eq!((&listed["trust"], &listed["region"]), (&"cloud".into(), &"local".into()), "{listed}");
    assert_eq!(Rented::all(&market).len(), 1, "one machine for one job");

    // It costs less than what is rented, which has nothing to do.
    let miner = market.stranger("cheaper", &["--cpu", &whole, "--memory", "512MiB", "--disk", "1GiB"]);
    market.await_host(&miner.id, "ready");
    let second = market.await_final(&small(&half, "NAVE_SIM_MS=1000"));
    assert_eq!(host_of(&second, 0), miner.id, "{second}");

    wait_for("the machine to go back", || machine.left(&market).is_empty().then_some(()));
    wait_for("its host to be gone", || market.listed(&rented).is_none().then_some(()));
    for job in long.each_ref().map(|job| market.job(job)) {
        assert!(
            job["state"] == "running" && local.contains(&host_of(&job, 0)),
            "what miners run goes on: {job}"
        );
    }
    let machines = succeed(market.naved().args(["admin", "machines", "--json"]));
    let machines: Value = serde_json::from_str(&machines).expect("JSON");
    let (cost, charged) = (&machines["day"]["cost"], &machines["day"]["charged"]);
    assert_eq!(charged, &done["charged"], "what jobs on it paid: {machines}");
    assert!(cost.as_i64() > charged.as_i64(), "it cost more: {machines}");
    market.audit();
}

#[test]
fn a_rented_machine_that_is_lost_costs_the_customer_nothing_and_kills_leave_nothing() {
    let arguments = ["--hosts", "0", "--cloud", "local", "--cloud-hosts", "2", "--cloud-boot", "1s"];
    let protocol = ["--cloud-patience", "1s", "--report", "1s", "--fence", "30s"];
    let Some(market) = Market::docker(&[&arguments[..], &protocol].concat()) else { return };
    let before = market.json(&["balance"])["available"].as_i64().expect("money");
    let long = "import time\nfor i in range(80): print('tick', i, flush=True); time.sleep(.5)";
    let job = market.submit(&["--cpu", "0.2", "--memory", "64MiB"], &["python3", "-c", long]);
    wait_for("it to run on a rented machine", || market.stdout(&job).contains("tick 2").then_some(()));

    // Whoever keeps machines may be killed: what runs goes on, and nothing is rented twice.
    kill(market.pid("scheduler"), SIGKILL);
    kill(market.supervisor(), SIGKILL);
    market.up();
    let ticks = market.stdout(&job).len();
    wait_for("the job to go on", || (market.stdout(&job).len() > ticks).then_some(()));
    let host = host_of(&market.job(&job), 0);
    let lost = Rented::of_host(&market, &host);
    assert_eq!(Rented::all(&market), std::slice::from_ref(&lost.name));

    lost.take_away(&market);
    let closed = market.await_job(&job, "lost", |job| job["attempts"][0]["outcome"]["kind"] == "host_lost");
    assert_eq!(closed["charged"], 0, "the lost attempt costs nothing: {closed}");
    wait_for("the lost machine to be gone", || lost.left(&market).is_empty().then_some(()));
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_ne!(host_of(&done, 1), host, "it ran on another machine: {done}");
    let cost = done["charged"].as_i64().expect("money");
    assert_eq!(market.json(&["balance"])["available"].as_i64().expect("money"), before - cost, "paid once");
    market.audit();

    market.down();
    assert_eq!(left_on_machine(&market), BTreeSet::new());
}
