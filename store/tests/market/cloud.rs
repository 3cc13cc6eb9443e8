//! Machines of clouds: they become hosts by their tickets, and no machine goes back while it works.

use std::sync::atomic::{AtomicU16, Ordering};

use nave_domain::{
    HostId, MicroUsd, Millis, Timestamp,
    host::{HostState, Trust},
    job::JobState,
    lease::Outcome,
};
use nave_store::{
    AttemptFault, HostRow, Joined, Joining, MachineAttempt, MachineDemand, MachineEnding, MachineRow,
    MachineWrite, NewMachine, QuoteFault, RentedMachine, Store, StoreError, testing,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    enrol::wish,
    market::{Market, inventory, open, request},
    quote::{held, on},
};

pub const PLATFORM: &str = "platform";
pub const IDLE: MachineEnding = MachineEnding { name: "idle", at: Timestamp(9), is_for_want_of_work: true };
pub const BROKE: MachineEnding =
    MachineEnding { name: "broke", at: Timestamp(9), is_for_want_of_work: false };

/// A machine that is wanted for a job.
pub async fn want(market: &Market, machine: Uuid) -> Result<(), StoreError> {
    let customer = market.customer("customer").await;
    let job = market.submit(customer, &request()).await;
    let seen = market.store.rent_snapshot(Millis(0)).await.expect("a snapshot").seen;
    let (known, shape) = (json!({}), json!({}));
    let new = NewMachine { machine, cloud: "lambda", known, shape, hotkey: PLATFORM, job };
    market.store.machines_want(seen, &[new]).await
}

/// The host that a wanted machine becomes.
async fn enrol(market: &Market, machine: Uuid, hotkey: &str) -> Result<Joined, StoreError> {
    // No two have the same keys and address, nor those of others that are enrolled here.
    static NUMBER: AtomicU16 = AtomicU16::new(0x1000);
    let ticket = machine.simple().to_string();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let joining = Joining { ticket: &ticket, hotkey, ..wish(number) };
    market.store.host_join(&joining).await
}

/// A machine that is a host and takes jobs.
pub async fn works(market: &Market) -> (Uuid, HostId) {
    let machine = Uuid::now_v7();
    want(market, machine).await.expect("wanted");
    let host = enrol(market, machine, PLATFORM).await.expect("enrolled").host;
    market.store.host_hear(host, 1, 1, 0, &inventory()).await.expect("hear");
    market.store.host_passed(host).await.expect("proven");
    (machine, host)
}

pub async fn row(market: &Market, machine: Uuid) -> MachineRow {
    market.store.machine_find(machine).await.expect("the database").expect("a machine")
}

async fn rented(market: &Market, machine: Uuid) -> RentedMachine {
    let machines = market.store.rent_snapshot(Millis(60_000)).await.expect("a snapshot").machines;
    machines.into_iter().find(|rented| rented.row.machine == machine).expect("it")
}

async fn host(market: &Market, host: HostId) -> HostRow {
    let rows = market.store.hosts_of_miner(PLATFORM).await.expect("hosts");
    rows.into_iter().find(|row| row.host == host).expect("the host")
}

/// What a keeper writes who has read the row now.
async fn ends(market: &Market, machine: Uuid, ending: MachineEnding) -> bool {
    costs(market, machine, Some(ending), 5).await
}

/// What a keeper writes who has read the row now: what it has cost, and perhaps that it goes.
pub async fn costs(market: &Market, machine: Uuid, ending: Option<MachineEnding>, cost: i64) -> bool {
    let row = row(market, machine).await;
    let write = MachineWrite {
        machine,
        version: row.version,
        cloud: "lambda",
        made_at: row.made_at,
        asked_at: Some(row.made_at),
        ending,
        is_closed: false,
        cost: MicroUsd(cost),
        known: json!({ "offer": ["small", "us"] }),
    };
    market.store.machine_write(&write, None).await.expect("the database")
}

#[tokio::test]
async fn a_ticket_makes_the_machine_a_host_that_the_market_vouches_for() {
    open(async |market| {
        let (machine, id) = works(market).await;
        let found = rented(market, machine).await;
        assert_eq!((found.row.host, found.host, found.is_busy), (Some(id), Some(HostState::Ready), false));
        assert!(found.row.enrolled_at.is_some());
        assert_eq!(host(market, id).await.trust, Trust::Cloud);
        let snapshot = market.store.snapshot().await.expect("a snapshot");
        assert_eq!(snapshot.hosts[&id].terms.trust, Trust::Cloud);
    })
    .await;
}

#[tokio::test]
async fn what_a_machine_can_still_run_ends_when_it_goes_back_for_placements_and_quotes() {
    open(async |market| {
        let (machine, host) = works(market).await;
        let ends_in = async |span: i64| {
            let known = json!({ "dead_man": market.store.now().await.expect("the time").after(Millis(MachineRow::MARGIN.0 + span)) });
            sqlx::query("update machines set known = $2 where machine_id = $1")
                .bind(machine)
                .bind(known)
                .execute(&market.sql)
                .await
                .expect("written");
        };
        let hour = 3_600_000;
        ends_in(10 * hour).await;
        let lasts = market.store.snapshot().await.expect("a snapshot").hosts[&host].lasts.expect("an end");
        assert!((9 * hour..=10 * hour).contains(&lasts.0), "{lasts}");
        let customer = market.customer("ada").await;
        let quote = held(market, customer, host).await;
        ends_in(request().limits.longest().0 - 1).await;
        let late = market.try_submit(customer, "late", &on(quote)).await;
        assert!(matches!(late, Err(StoreError::Quote(QuoteFault::Void))), "{late:?}");
    })
    .await;
}

#[tokio::test]
async fn nobody_elses_ticket_makes_a_machine_of_a_host_and_none_of_one_that_goes() {
    open(async |market| {
        let machine = Uuid::now_v7();
        want(market, machine).await.expect("wanted");
        enrol(market, machine, "eve").await.expect("a host of eve's");
        assert_eq!(row(market, machine).await.host, None);
        assert!(ends(market, machine, BROKE).await);
        let late = enrol(market, machine, PLATFORM).await;
        assert!(matches!(late, Err(StoreError::Stale(_))), "{late:?}");
        assert!(market.store.hosts_of_miner(PLATFORM).await.expect("hosts").is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_machine_does_not_go_back_for_want_of_work_while_it_works() {
    open(async |market| {
        let (machine, id) = works(market).await;
        let customer = market.customer("customer").await;
        let version = row(market, machine).await.version;
        let idle = MachineDemand::Idle(Timestamp(1));
        assert!(market.store.machine_demand(machine, version, idle).await.expect("idle"));
        assert!(!market.store.machine_demand(machine, version, idle).await.expect("an old version"));
        let (_, lease) = market.run(customer, id, &request()).await;
        assert!(!ends(market, machine, IDLE).await);
        let kept = row(market, machine).await;
        assert_eq!((kept.demand, kept.ending), (MachineDemand::Wanted, None));
        market.finish(id, lease, Outcome::Exited { code: 0 }).await;
        assert!(ends(market, machine, IDLE).await);
        assert_eq!(host(market, id).await.state, HostState::Gone);
        assert!(!market.store.snapshot().await.expect("a snapshot").hosts.contains_key(&id));
    })
    .await;
}

#[tokio::test]
async fn a_job_and_the_end_of_a_machine_exclude_each_other() {
    open(async |market| {
        for _ in 0..8 {
            let (machine, id) = works(market).await;
            let customer = market.customer("customer").await;
            let job = market.submit(customer, &request()).await;
            let placement = market.placement(job, id).await;
            let (placed, ended) =
                tokio::join!(market.store.job_place(&placement), ends(market, machine, IDLE));
            assert_ne!(placed.is_ok(), ended, "{placed:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn jobs_of_a_machine_that_died_run_again_and_cost_nothing() {
    open(async |market| {
        let (machine, id) = works(market).await;
        let customer = market.customer("customer").await;
        let (job, lease) = market.run(customer, id, &request()).await;
        market.use_up(id, lease, 5_000).await;
        assert!(ends(market, machine, BROKE).await);
        assert_eq!(host(market, id).await.state, HostState::Gone);
        market.store.lease_lost(id, lease).await.expect("lost");
        let row = market.job(customer, job).await;
        assert_eq!((row.state, row.charged), (JobState::Queued, MicroUsd::ZERO));
    })
    .await;
}

#[tokio::test]
async fn two_that_decide_at_once_want_one_machine() {
    open(async |market| {
        let seen = market.store.rent_snapshot(Millis(0)).await.expect("a snapshot").seen;
        want(market, Uuid::now_v7()).await.expect("wanted");
        let customer = market.customer("customer").await;
        let job = market.submit(customer, &request()).await;
        let (known, shape) = (json!({}), json!({}));
        let machine = Uuid::now_v7();
        let new = NewMachine { machine, cloud: "lambda", known, shape, hotkey: PLATFORM, job };
        let second = market.store.machines_want(seen, &[new]).await;
        assert!(matches!(second, Err(StoreError::Stale(_))), "{second:?}");
        assert_eq!(market.store.machine_find(machine).await.expect("the database"), None);
    })
    .await;
}

#[tokio::test]
async fn rows_of_machines_are_never_removed() {
    open(async |market| {
        want(market, Uuid::now_v7()).await.expect("wanted");
        sqlx::query("delete from machines").execute(&market.sql).await.expect_err("rows stay");
    })
    .await;
}

#[tokio::test]
async fn what_a_cloud_delivers_earns_nobody_weight() {
    open(async |market| {
        let epoch = market.store.epoch_open("local").await.expect("an epoch").epoch;
        let customer = market.customer("customer").await;
        let miner = market.host("miner").await;
        let (_, rented) = works(market).await;
        for host in [miner, rented] {
            let (_, lease) = market.run(customer, host, &request()).await;
            market.use_up(host, lease, 3_000).await;
            market.finish(host, lease, Outcome::Exited { code: 0 }).await;
        }
        market.store.epoch_close(epoch, "local").await.expect("closed");
        let delivered = market.store.epoch_delivered(epoch).await.expect("delivered");
        assert_eq!(delivered.keys().collect::<Vec<_>>(), ["hotkey of miner"]);
    })
    .await;
}

#[tokio::test]
async fn what_a_cloud_had_quoted_is_kept_with_the_launch() {
    open(async |market| {
        let launch = MachineAttempt {
            machine: None,
            cloud: "lambda".into(),
            call: "launch".into(),
            at: Timestamp(5),
            times: 1,
            hourly: Some(MicroUsd(2_000_000)),
            quoted: Some((r#"{"price":2}"#.into(), Timestamp(4))),
            fault: None,
        };
        market.store.machine_note(&launch).await.expect("noted");
        assert_eq!(
            market.store.machine_attempts(None, 1).await.expect("attempts"),
            std::slice::from_ref(&launch)
        );
        let long = MachineAttempt { quoted: Some(("x".repeat(8_193), Timestamp(4))), ..launch };
        assert!(market.store.machine_note(&long).await.is_err(), "more is kept than is of use");
    })
    .await;
}

#[tokio::test]
async fn the_same_failure_again_is_counted_and_another_one_is_written_beside_it() {
    open(async |market| {
        let said = |reason: &str, at| MachineAttempt {
            machine: None,
            cloud: "lambda".into(),
            call: "list".into(),
            at: Timestamp(at),
            times: 1,
            hourly: None,
            quoted: None,
            fault: Some(AttemptFault {
                reason: reason.into(),
                code: "503".into(),
                message: format!("at {at}"),
            }),
        };
        for (reason, at) in [("unavailable", 1), ("unavailable", 2), ("timed_out", 3), ("unavailable", 4)] {
            market.store.machine_note(&said(reason, at)).await.expect("noted");
        }
        let noted = market.store.machine_attempts(None, 10).await.expect("attempts");
        let counts: Vec<_> = noted.iter().map(|attempt| (attempt.times, attempt.at.0)).collect();
        assert_eq!(counts, [(1, 4), (1, 3), (2, 2)]);
        let last = noted.last().and_then(|attempt| attempt.fault.clone()).expect("a fault");
        assert_eq!(last.message, "at 2", "in the words of the last one");
    })
    .await;
}

/// A market that had machines before what they cost was in the ledger.
async fn upgraded(machine: Uuid, cost: i64) -> Market {
    let (mut old, url) = testing::database_at(14).await;
    sqlx::query("insert into machines (machine_id, version, cloud, made_at_ms, cost, known) values ($1, 7, 'lambda', 1, $2, '{}')")
        .bind(machine)
        .bind(cost)
        .execute(&mut old)
        .await
        .expect("a machine");
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    Market::new(store, sqlx::PgPool::connect(&url).await.expect("connect"))
}

#[tokio::test]
async fn what_machines_had_cost_before_is_in_the_ledger_and_what_they_cost_next_is_added() {
    let machine = Uuid::now_v7();
    let market = upgraded(machine, 1_000_000).await;
    market.audit().await;
    assert!(costs(&market, machine, None, 1_400_000).await);
    market.audit().await;
    let clouds: i64 = sqlx::query_scalar("select balance from ledger_accounts where account = 'clouds'")
        .fetch_one(&market.sql)
        .await
        .expect("a balance");
    assert_eq!(clouds, 1_400_000);
}
