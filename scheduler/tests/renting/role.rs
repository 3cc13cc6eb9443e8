//! The role as it runs, with a cloud that is a directory.

use std::{fs, future::pending, sync::Arc, time::Duration};

use nave_clouds::{
    Cloud, Secret,
    adapters::{
        Settings,
        local::{Does, Estate, Offered, Rented, Told},
    },
};
use nave_domain::{Bytes, JobId, MicroUsd, MilliCpu, Millis, host::HostState, lease::Outcome};
use nave_scheduler::{
    cloud::{Market, TicketTerms, config::Clouds, run},
    demand::Limits,
    watch::Patience,
};
use nave_store::{BaselineSource, Store};
use tempfile::TempDir;
use tokio::{
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

#[tokio::test]
async fn a_job_that_waits_has_one_machine_rented_which_goes_back_when_it_is_idle() {
    let dir = tempfile::tempdir().expect("a directory");
    let (estate, clouds) = estate(&dir);
    let (store, job) = store().await;
    let renting = tokio::spawn(run(clouds, Some(market()), store.clone(), pending()));
    let patience = Patience::from_protocol(Millis(45_000), Millis(5_000));
    let placing = tokio::spawn(nave_scheduler::run(patience, store.clone(), pending()));

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
    let row = store.machine_find(id).await.expect("the database").expect("a row");
    assert_eq!(row.ending.as_deref(), Some("idle"));
    let hosts = store.hosts_of_miner(PLATFORM).await.expect("hosts");
    assert_eq!(hosts.iter().map(|host| host.state).collect::<Vec<_>>(), [HostState::Gone]);

    estate.forget(&returned.name).expect("gone");
    let closed = async || {
        let row = store.machine_find(id).await.expect("the database").expect("a row");
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
    let patience = Patience::from_protocol(Millis(45_000), Millis(5_000));
    let mut tasks = JoinSet::new();
    tasks.spawn(run(clouds, Some(market()), store.clone(), pending()));
    tasks.spawn(nave_scheduler::run(patience, store.clone(), pending()));
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
