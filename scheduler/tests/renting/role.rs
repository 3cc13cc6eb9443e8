//! The role as it runs, with a cloud that is a directory.

use std::{
    collections::BTreeSet,
    fs,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nave_clouds::{
    Cloud, Row, Secret,
    adapters::{
        Settings,
        local::{Does, Estate, Offered, Rented, Told},
    },
    provider::MachineId,
};
use nave_domain::{
    Bytes, ChallengeId, JobId, MicroUsd, MilliCpu, Millis, host::HostState, job::JobRequest, lease::Outcome,
    rate::Rate, verdict::Kind,
};
use nave_scheduler::{
    cloud::{Market, TicketTerms, config::Clouds, ledger::known, run},
    demand::{Limits, Shape},
    watch::Patience,
};
use nave_store::{
    BaselineSource, Decision, MachineEnding, MachineRow, MachineWrite, NewMachine, Store, Submission,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::rows::{inventory, join, owner, store};

const PLATFORM: &str = "platform";

fn market() -> Market {
    let sign = |terms: &TicketTerms| Ok(format!("nave1.{}.{}", terms.machine.simple(), terms.name));
    Market { owner: owner(), hotkey: PLATFORM.to_owned(), sign: Arc::new(sign) }
}

/// A cloud with two small machines.
fn estate(dir: &TempDir) -> (Estate, Clouds) {
    let estate = Estate::new(dir.path());
    estate.prepare().expect("a directory");
    let offered = Offered {
        id: "small".into(),
        region: "here".into(),
        count: 2,
        price: MicroUsd(100_000),
        cpu: MilliCpu(4_000),
        memory: Bytes(16 * Bytes::GIB),
        disk: Bytes(100 * Bytes::GIB),
        devices: 0,
        model: String::new(),
        vram_each: None,
    };
    estate.offer(&[offered]).expect("offered");
    let settings = Settings {
        base_url: Some(dir.path().to_string_lossy().into_owned()),
        key_id: String::new(),
        key: Secret::new(""),
        image: String::new(),
        ssh_key: String::new(),
    };
    let limits = Limits { patience: Millis(0), idle: Millis(1_000), share_percent: 0, ..Limits::default() };
    (estate, Clouds { limits, accounts: vec![(Cloud::Local, settings)], ..Clouds::default() })
}

fn patience() -> Patience {
    Patience::from_protocol(Millis(45_000), Millis(5_000))
}

/// Waits until something is there.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let waits = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(120), waits).await.unwrap_or_else(|_| panic!("{what} never came"))
}

/// The host that a machine of the directory becomes.
async fn boot(store: &Store, estate: &Estate, machine: &Rented) -> (Uuid, nave_domain::HostId) {
    let script = fs::read_to_string(estate.boot(&machine.name)).expect("a script");
    let ticket = script.lines().find_map(|line| line.strip_prefix("ticket='nave1.")).expect("a ticket");
    let id = Uuid::try_parse(ticket.split('.').next().expect("an id")).expect("an id");
    estate.tell(&machine.name, &Told { does: Does::Runs, number: 1, address: None }).expect("told");
    (id, join(store, id, PLATFORM).await.expect("a host"))
}

fn shape() -> Shape {
    Shape {
        model: String::new(),
        class: None,
        models: Vec::new(),
        is_proven: false,
        devices: 0,
        vram: Bytes::ZERO,
        cpu: MilliCpu(4_000),
        memory: Bytes(14 * Bytes::GIB),
        disk: Bytes(40 * Bytes::GIB),
        region: None,
        rate: Rate::default(),
    }
}

/// A machine that somebody wanted of a cloud, for a job of another customer that still waits or does not.
async fn want(store: &Store, cloud: Cloud, hotkey: &str, waits: bool) -> Uuid {
    let machine = Uuid::now_v7();
    let customer = store.customer_ensure("another").await.expect("a customer");
    store.credit(customer, "first", MicroUsd(10_000_000)).await.expect("credit");
    let (request, key) = (JobRequest::of(vec!["true".into()]), machine.to_string());
    let submission = Submission { customer, key: &key, hash: [0; 32], request: &request };
    let job = store.job_submit(&submission).await.expect("submitted").job;
    let now = store.now().await.expect("the time");
    let (offer, price, dead_man) =
        (("small".into(), "here".into()), MicroUsd(100_000), now.after(Millis(86_400_000)));
    let row = Row::intend(MachineId(machine), cloud, offer, price, price, now, dead_man);
    let (known, shape) = (known(&row).expect("written"), serde_json::to_value(shape()).expect("written"));
    let new = NewMachine { machine, cloud: cloud.name(), known, shape, hotkey, job };
    let seen = store.rent_snapshot(Millis(0)).await.expect("a snapshot").seen;
    store.machines_want(seen, &[new]).await.expect("wanted");
    if !waits {
        store.job_cancel(customer, job).await.expect("cancelled");
    }
    machine
}

/// A machine that was paid for in vain.
async fn fail(store: &Store, cloud: Cloud) {
    let machine = want(store, cloud, PLATFORM, false).await;
    let MachineRow { version, made_at, known, .. } = find(store, machine).await;
    let at = store.now().await.expect("the time");
    let write = MachineWrite {
        machine,
        version,
        cloud: cloud.name(),
        made_at,
        asked_at: None,
        ending: Some(MachineEnding { name: "broke", at, is_for_want_of_work: false }),
        is_closed: true,
        cost: MicroUsd(5),
        known,
    };
    assert!(store.machine_write(&write, None).await.expect("the database"));
}

async fn find(store: &Store, machine: Uuid) -> MachineRow {
    store.machine_find(machine).await.expect("the database").expect("a row")
}

/// Waits until nothing is rented of the local cloud, for a reason with this word in it; nothing has been then.
async fn stops(store: &Store, estate: &Estate, word: &str) {
    let stop = async || {
        let clouds = store.cloud_list().await.expect("clouds");
        let local = clouds.into_iter().find(|row| row.cloud == "local")?;
        local.stop.filter(|stop| stop.contains(word))
    };
    until(word, stop).await;
    assert_eq!(estate.machines().expect("machines"), []);
}

#[tokio::test]
async fn after_machines_in_vain_a_cloud_rests_until_an_operator_lets_it_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, _) = store().await;
    for _ in 0..5 {
        fail(&store, Cloud::Local).await;
    }
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    let placing = tokio::spawn(nave_scheduler::run(patience(), store.clone(), pending()));
    stops(&store, &estate, "naved admin resume local").await;
    store.cloud_resume("local").await.expect("resumed");
    until("a machine", async || estate.machines().expect("machines").pop()).await;
    renting.abort();
    placing.abort();
}

#[tokio::test]
async fn nothing_is_rented_while_the_platforms_hotkey_is_banned() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, _) = store().await;
    let host = join(&store, Uuid::now_v7(), PLATFORM).await.expect("a host of its own");
    store.host_hear(host, 1, 1, 0, &inventory()).await.expect("heard");
    let challenge = ChallengeId(Uuid::now_v7());
    store.challenge_give(host, challenge, Kind::Cpu, &json!({}), &inventory()).await.expect("drawn");
    let banned =
        Decision::Banned { code: "c".into(), message: "made up".into(), spans: vec![Millis(3_600_000)] };
    let verdict = json!({ "failed": { "code": "c", "message": "made up" } });
    store.challenge_decide(challenge, &verdict, &banned).await.expect("decided");
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    let placing = tokio::spawn(nave_scheduler::run(patience(), store.clone(), pending()));
    stops(&store, &estate, "hotkey is banned").await;
    store.host_retest(host).await.expect("the operator's word");
    until("a machine", async || estate.machines().expect("machines").pop()).await;
    renting.abort();
    placing.abort();
}

#[tokio::test]
async fn nothing_is_rented_while_machines_of_a_cloud_are_open_that_is_not_in_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, _) = store().await;
    want(&store, Cloud::Lambda, PLATFORM, false).await;
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    let placing = tokio::spawn(nave_scheduler::run(patience(), store.clone(), pending()));
    stops(&store, &estate, "machines of lambda are rented").await;
    let clouds = store.cloud_list().await.expect("clouds");
    let lambda = clouds.iter().find(|row| row.cloud == "lambda").expect("it is listed");
    assert_eq!((lambda.open, lambda.looked_at), (1, None), "it shows that nobody looks after it");
    renting.abort();
    placing.abort();
}

#[tokio::test]
async fn a_drained_cloud_takes_back_what_is_rented_and_no_machine_is_rented_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, _) = store().await;
    let drained = Clouds { drained: BTreeSet::from([Cloud::Local]), ..self::estate(&dir).1 };
    let placing = tokio::spawn(nave_scheduler::run(patience(), store.clone(), pending()));
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    let machine = until("a machine", async || estate.machines().expect("machines").pop()).await;
    let (id, host) = boot(&store, &estate, &machine).await;
    renting.abort();
    drop(renting.await);
    let renting = tokio::spawn(run(drained, Some(market()), store.clone(), pending()));
    // Also a machine that has just joined: nothing runs there.
    store.host_hear(host, 1, 1, 0, &inventory()).await.expect("heard");
    let returned =
        async || estate.machines().expect("machines").into_iter().find(|machine| machine.is_returned);
    until("its return", returned).await;
    assert_eq!(find(&store, id).await.ending.as_deref(), Some("released"));
    estate.forget(&machine.name).expect("gone");
    until("its end", async || find(&store, id).await.is_closed.then_some(())).await;
    stops(&store, &estate, "drained").await;
    renting.abort();
    placing.abort();
}

#[tokio::test]
async fn a_machine_that_another_hotkey_wanted_is_let_go_and_never_launched() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, _) = store().await;
    let machine = want(&store, Cloud::Local, "the hotkey before", true).await;
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    until("its end", async || find(&store, machine).await.is_closed.then_some(())).await;
    assert_eq!(find(&store, machine).await.ending.as_deref(), Some("released"));
    assert_eq!(find(&store, machine).await.cost, MicroUsd::ZERO);
    let tag = owner().tag(MachineId(machine)).to_string();
    assert!(estate.machines().expect("machines").iter().all(|machine| machine.name != tag));
    renting.abort();
}

#[tokio::test]
async fn what_another_hotkey_wants_is_left_to_its_own_scheduler_as_long_as_there_is_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, _) = store().await;
    store.cloud_kept("local", "another").await.expect("it is there");
    let theirs = want(&store, Cloud::Local, "another", true).await;
    let ours = want(&store, Cloud::Local, PLATFORM, true).await;
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    let tag = |machine| owner().tag(MachineId(machine)).to_string();
    let launched =
        async || estate.machines().expect("machines").into_iter().find(|machine| machine.name == tag(ours));
    until("our machine", launched).await;
    let row = find(&store, theirs).await;
    assert_eq!((row.ending, row.is_closed), (None, false), "it is not let go");
    assert!(estate.machines().expect("machines").iter().all(|machine| machine.name != tag(theirs)));
    renting.abort();
}

#[tokio::test]
async fn a_scheduler_without_the_file_forgets_why_a_cloud_stopped_only_where_nobody_keeps_it() {
    let (store, _) = store().await;
    store.cloud_kept("local", PLATFORM).await.expect("another scheduler is there");
    for cloud in ["lambda", "local"] {
        store.cloud_stop(cloud, Some("it rests")).await.expect("noted");
    }
    let renting = tokio::spawn(run(Clouds::default(), None, store.clone(), pending()));
    let of = async |cloud| {
        let clouds = store.cloud_list().await.expect("clouds");
        clouds.into_iter().find(|row| row.cloud == cloud).expect("it is listed")
    };
    until("it to be forgotten", async || of("lambda").await.stop.is_none().then_some(())).await;
    let local = of("local").await;
    assert_eq!((local.is_kept, local.stop.as_deref()), (true, Some("it rests")));
    renting.abort();
}

#[tokio::test]
async fn a_row_that_cannot_be_read_keeps_nobody_from_renting() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, job) = store().await;
    let seen = store.rent_snapshot(Millis(0)).await.expect("a snapshot").seen;
    let (machine, known, shape) = (Uuid::now_v7(), json!({ "later": "words" }), json!({ "later": "words" }));
    let new = NewMachine { machine, cloud: "lambda", known, shape, hotkey: PLATFORM, job };
    store.machines_want(seen, &[new]).await.expect("wanted");
    store.cloud_kept("lambda", "another").await.expect("another scheduler is there");
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    let placing = tokio::spawn(nave_scheduler::run(patience(), store.clone(), pending()));
    until("a machine", async || estate.machines().expect("machines").pop()).await;
    renting.abort();
    placing.abort();
}

#[tokio::test]
async fn a_job_that_waits_has_one_machine_rented_which_goes_back_when_it_is_idle() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, job) = store().await;
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    let placing = tokio::spawn(nave_scheduler::run(patience(), store.clone(), pending()));

    let machine = until("a machine", async || estate.machines().expect("machines").pop()).await;
    let (id, host) = boot(&store, &estate, &machine).await;
    assert_eq!(estate.machines().expect("machines").len(), 1, "one job, one machine");

    store.host_hear(host, 1, 1, 0, &inventory()).await.expect("heard");
    store.host_passed(host).await.expect("proven");
    let lease = until("its job", async || {
        store.attempt_list(&[job]).await.expect("attempts").pop().map(|attempt| attempt.lease)
    })
    .await;
    store.lease_started(host, lease).await.expect("started");
    store.lease_finished(host, lease, Some(Outcome::Exited { code: 0 }), None).await.expect("finished");
    let returned =
        async || estate.machines().expect("machines").into_iter().find(|machine| machine.is_returned);
    let returned = until("its return", returned).await;
    let row = find(&store, id).await;
    assert_eq!(row.ending.as_deref(), Some("idle"));
    let hosts = store.hosts_of_miner(PLATFORM).await.expect("hosts");
    assert_eq!(hosts.iter().map(|host| host.state).collect::<Vec<_>>(), [HostState::Gone]);

    estate.forget(&returned.name).expect("gone");
    let closed = async || {
        let row = find(&store, id).await;
        row.is_closed.then_some(row)
    };
    assert!(until("its end", closed).await.cost > MicroUsd::ZERO);
    assert_eq!(store.machine_list(10).await.expect("rows").len(), 1);
    renting.abort();
    placing.abort();
}

/// A market that rents within these limits, until the test is over.
async fn renting(clouds: Clouds) -> (Store, JobId, JoinSet<anyhow::Result<()>>) {
    let (store, job) = store().await;
    let mut tasks = JoinSet::new();
    tasks.spawn(run(clouds, Some(market()), store.clone(), pending()));
    tasks.spawn(nave_scheduler::run(patience(), store.clone(), pending()));
    (store, job, tasks)
}

#[tokio::test]
async fn a_machine_goes_back_before_it_is_a_host_when_its_job_is_cancelled() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, job, _tasks) = renting(clouds).await;
    until("a machine", async || estate.machines().expect("machines").pop()).await;
    let customer = store.customer_ensure("customer").await.expect("a customer");
    store.job_cancel(customer, job).await.expect("cancelled");
    let is_returned =
        async || estate.machines().expect("machines").pop().filter(|machine| machine.is_returned);
    until("its return", is_returned).await;
}

#[tokio::test]
async fn nothing_is_rented_once_machines_have_lost_what_they_may_and_the_operator_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, mut clouds) = estate(&dir);
    clouds.limits.loss = MicroUsd::ZERO;
    let (store, _, _tasks) = renting(clouds).await;
    let told = until("a word", async || {
        let attempts = store.machine_attempts(None, 10).await.expect("attempts");
        attempts.into_iter().find(|attempt| attempt.call == "rent")
    })
    .await;
    let fault = told.fault.expect("a reason");
    assert!(fault.reason == "loss" && fault.message.contains("nothing more is rented"), "{fault:?}");
    assert_eq!(estate.machines().expect("machines"), []);
}

#[tokio::test]
async fn a_customer_for_whom_nothing_more_is_rented_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, mut clouds) = estate(&dir);
    clouds.limits.unused = 0;
    let (store, job, _tasks) = renting(clouds).await;
    let customer = store.customer_ensure("customer").await.expect("a customer");
    let told = async || {
        let reason = store.job_get(customer, job).await.expect("the job").reason?;
        reason.1.contains("no machine is rented for it").then_some(())
    };
    until("a word", told).await;
    assert_eq!(estate.machines().expect("machines"), []);
}

#[tokio::test]
async fn a_cloud_that_holds_every_call_delays_no_machine_of_another_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, mut clouds) = estate(&dir);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let calls = Arc::new(AtomicUsize::new(0));
    let heard = calls.clone();
    // It takes every call and answers none.
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((call, _)) = listener.accept().await {
            heard.fetch_add(1, Ordering::Relaxed);
            held.push(call);
        }
    });
    let silent = Settings { base_url: Some(url), ..clouds.accounts[0].1.clone() };
    // It is asked first.
    clouds.accounts.insert(0, (Cloud::Lambda, silent));
    let (store, _) = store().await;
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    let patience = Patience::from_protocol(Millis(45_000), Millis(5_000));
    let placing = tokio::spawn(nave_scheduler::run(patience, store.clone(), pending()));

    let machine = until("a machine", async || estate.machines().expect("machines").pop()).await;
    boot(&store, &estate, &machine).await;
    // All that time it held what it was asked first: what it offers, and its list.
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    let attempts = store.machine_attempts(None, 100).await.expect("attempts");
    assert!(attempts.iter().all(|attempt| attempt.cloud == "local"), "{attempts:?}");
    renting.abort();
    placing.abort();
    holding.abort();
}

#[tokio::test]
async fn a_list_of_offers_that_cannot_be_had_is_written_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let dir = tempfile::tempdir().expect("a directory");
    let (_, mut clouds) = estate(&dir);
    let nowhere = Settings { base_url: Some(url), ..clouds.accounts[0].1.clone() };
    clouds.accounts = vec![(Cloud::Lambda, nowhere)];
    let (store, _) = store().await;
    let role = tokio::spawn(run(clouds, None, store.clone(), pending()));
    let attempt =
        until("an attempt", async || store.machine_attempts(None, 1).await.expect("attempts").pop()).await;
    assert_eq!((attempt.cloud.as_str(), attempt.call.as_str(), attempt.machine), ("lambda", "quote", None));
    assert_eq!(attempt.fault.map(|fault| fault.reason).as_deref(), Some("not_sent"));
    role.abort();
}

#[tokio::test]
async fn without_a_cloud_the_baseline_is_the_list_and_says_so() {
    let (store, _) = store().await;
    let role = tokio::spawn(run(Clouds::default(), None, store.clone(), pending()));
    let rows = until("a baseline", async || {
        Some(store.baseline_history("h100-sxm").await.expect("rows")).filter(|rows| !rows.is_empty())
    })
    .await;
    let BaselineSource::List(source) = &rows[0].source else { panic!("{rows:?}") };
    assert!(source.contains("unverified"), "{rows:?}");
    assert!(rows[0].gpu_hour > MicroUsd::ZERO);
    role.abort();
}
