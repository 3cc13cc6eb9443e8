//! Hosts: enrolment, reports and silence.

use nave_domain::{
    HostId, MicroUsd, MilliCpu, Millis, host::HostState, job::JobState, lease::LeaseState, rate::Rate,
};
use nave_store::{Changes, HostPatch, StoreError, testing::NewHost};
use uuid::Uuid;

use crate::market::{EXITED, Market, RATE, inventory, open, request};

async fn state_of(market: &Market, host: HostId) -> HostState {
    market.store.host_spec(host).await.expect("spec").state
}

async fn advance_clock(market: &Market, span: i64) {
    sqlx::query("update control_clock set up_ms = up_ms + $1")
        .bind(span)
        .execute(&market.sql)
        .await
        .expect("advance");
}

#[tokio::test]
async fn a_host_takes_jobs_from_its_first_report() {
    open(async |market| {
        let host = HostId(Uuid::now_v7());
        let new = NewHost { host, name: "alpha", hotkey: "miner", rate: RATE };
        market.store.host_enrol(&new).await.expect("enrol");
        assert_eq!(state_of(market, host).await, HostState::Enrolled);
        assert!(market.store.snapshot().await.expect("snapshot").hosts.is_empty());
        market.store.host_hear(host, 1, 1, 0, &inventory()).await.expect("hear");
        assert_eq!(state_of(market, host).await, HostState::Ready);
        let supply = market.store.snapshot().await.expect("snapshot").hosts.remove(&host).expect("supply");
        assert_eq!((supply.inventory, supply.rate), (inventory(), RATE));
        let listed = market.store.host_list().await.expect("list");
        assert_eq!((listed[0].name.as_str(), listed[0].leases), ("alpha", 0));
        assert!(listed[0].heard_at.is_some());
    })
    .await;
}

#[tokio::test]
async fn an_owner_changes_the_price_and_nothing_else() {
    open(async |market| {
        let host = market.host("alpha").await;
        let rate = Rate { vcpu_hour: MicroUsd(1), ..RATE };
        let dearer = HostPatch { rate: Some(rate), ..HostPatch::default() };
        let foreign = market.store.host_patch("eve", host, dearer.clone()).await;
        assert!(matches!(foreign, Err(StoreError::NotFound("host"))), "{foreign:?}");
        market.store.host_patch("hotkey of alpha", host, dearer).await.expect("another price");
        let listed = market.store.host_list().await.expect("list");
        assert_eq!((listed[0].name.as_str(), listed[0].rate), ("alpha", rate));
        assert_eq!(listed[0].state, HostState::Ready);
    })
    .await;
}

#[tokio::test]
async fn two_hosts_of_a_miner_do_not_share_a_name() {
    open(async |market| {
        market.host("alpha").await;
        let foreign = NewHost { host: HostId(Uuid::now_v7()), name: "alpha", hotkey: "eve", rate: RATE };
        market.store.host_enrol(&foreign).await.expect("names of others are free");
        let new = NewHost { host: HostId(Uuid::now_v7()), hotkey: "hotkey of alpha", ..foreign };
        let refused = market.store.host_enrol(&new).await;
        assert!(matches!(&refused, Err(StoreError::Constraint(name)) if name == "hosts_name"), "{refused:?}");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_is_heard_before_it_is_given_up_keeps_its_lease() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        advance_clock(market, 100_000).await;
        market.store.host_hear(host, 7, 1, 0, &inventory()).await.expect("hear");
        market.store.lease_lost_silent(host, lease, Millis(80_000)).await.expect("too late");
        assert_eq!(market.job(customer, job).await.state, JobState::Running);
        advance_clock(market, 100_000).await;
        market.store.lease_lost_silent(host, lease, Millis(80_000)).await.expect("lost");
        assert_eq!(market.job(customer, job).await.state, JobState::Queued);
    })
    .await;
}

#[tokio::test]
async fn a_late_report_of_the_same_process_or_an_earlier_one_is_not_believed() {
    open(async |market| {
        let host = market.host("alpha").await;
        let small = inventory();
        let mut grown = inventory();
        grown.milli_cpu = MilliCpu(99_000);
        let hear = async |process, sequence, inventory| {
            market.store.host_hear(host, process, sequence, 0, inventory).await.expect("hear").1
        };
        assert!(hear(7, 10, &small).await, "a new process is news");
        assert!(!hear(7, 10, &grown).await, "the same report again");
        assert!(!hear(7, 9, &grown).await, "an earlier report");
        assert_eq!(market.store.host_list().await.expect("list")[0].inventory, Some(inventory()));
        assert!(hear(7, 11, &grown).await);
        assert!(hear(u64::MAX, 1, &grown).await, "a restarted process counts anew");
        assert!(!hear(7, 12, &small).await, "a process before the last");
    })
    .await;
}

/// Otherwise a cheap host that says something else all the time makes every placement on
/// it stale, and jobs that others could run are planned for it again and again.
#[tokio::test]
async fn a_host_that_changes_all_the_time_does_not_keep_jobs_from_being_placed() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        market.settle(host).await;
        let mut other = inventory();
        for version in 1..=20_u64 {
            let generation = market.store.host_generation(host).await.expect("generation");
            other.os = version.to_string();
            let heard = market.store.host_hear(host, 7, version, 0, &other).await.expect("hear");
            assert_eq!(heard, (generation + u64::from(version == 1), true), "change {version}");
        }
        let placement = market.placement(job, host).await;
        other.os = "again".into();
        market.store.host_hear(host, 7, 21, 0, &other).await.expect("hear");
        market.store.job_place(&placement).await.expect("place");
        market.settle(host).await;
        market.store.host_hear(host, 7, 22, 0, &other).await.expect("hear");
        assert_eq!(market.store.host_list().await.expect("list")[0].inventory, Some(other));
        market.finish(host, market.attempt(job).await.lease, EXITED).await;
    })
    .await;
}

#[tokio::test]
async fn unknown_and_gone_hosts_are_not_heard() {
    open(async |market| {
        let unknown = market.store.host_hear(HostId(Uuid::now_v7()), 1, 1, 0, &inventory()).await;
        assert!(matches!(unknown, Err(StoreError::NotFound("host"))), "{unknown:?}");
        let host = market.host("alpha").await;
        sqlx::query("update hosts set state = 'gone'").execute(&market.sql).await.expect("leave");
        let gone = market.store.host_hear(host, 9, 9, 0, &inventory()).await;
        assert!(matches!(gone, Err(StoreError::Stale("host"))), "{gone:?}");
        assert!(market.store.host_list().await.expect("list").is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_silent_host_is_suspect_until_it_is_heard() {
    open(async |market| {
        let [silent, heard] = [market.host("silent").await, market.host("heard").await];
        advance_clock(market, 10_000).await;
        market.hear(heard).await;
        assert_eq!(market.store.hosts_suspect(Millis(9_999)).await.expect("suspect"), 1);
        assert_eq!(market.store.hosts_suspect(Millis(9_999)).await.expect("again"), 0);
        assert_eq!(state_of(market, silent).await, HostState::Suspect);
        assert_eq!(state_of(market, heard).await, HostState::Ready);
        assert!(!market.store.snapshot().await.expect("snapshot").hosts.contains_key(&silent));
        market.hear(silent).await;
        assert_eq!(state_of(market, silent).await, HostState::Ready);
    })
    .await;
}

#[tokio::test]
async fn silence_is_counted_in_control_plane_uptime() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        sqlx::query("update hosts set heard_at_ms = 0").execute(&market.sql).await.expect("long ago");
        let silent = async || market.store.leases_open().await.expect("open")[0].silent;
        assert_eq!(silent().await, Millis(0), "nobody listened meanwhile");
        advance_clock(market, 7_000).await;
        assert_eq!(silent().await, Millis(7_000));
        market.hear(host).await;
        assert_eq!(silent().await, Millis(0));
        market.finish(host, lease, EXITED).await;
    })
    .await;
}

#[tokio::test]
async fn what_somebody_waits_for_is_announced() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut changes = market.store.listen().subscribe();
        let mut next = async || {
            let change = tokio::time::timeout(std::time::Duration::from_secs(10), changes.recv()).await;
            change.expect("an announcement in time").expect("an announcement")
        };
        assert_eq!(next().await, Changes::Unknown, "listening has begun");
        let job = market.submit(customer, &request()).await;
        assert_eq!(next().await, Changes::Supply);
        let lease = market.place(job, host).await;
        assert_eq!([next().await, next().await], [Changes::Job(job), Changes::Host(host)]);
        market.finish(host, lease, EXITED).await;
        let mut rest = [next().await, next().await, next().await];
        rest.sort_by_key(|change| format!("{change:?}"));
        assert_eq!(rest, [Changes::Host(host), Changes::Job(job), Changes::Supply]);
    })
    .await;
}

#[tokio::test]
async fn what_open_leases_occupy_is_known_by_host() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let [busy, idle] = [market.host("busy").await, market.host("idle").await];
        let job = market.submit(customer, &request()).await;
        let mut placement = market.placement(job, busy).await;
        placement.devices = vec!["GPU-a".into(), "GPU-b".into()];
        let first = market.store.job_place(&placement).await.expect("place");
        let (_, second) = market.run(customer, busy, &request()).await;
        let occupied = market.store.hosts_occupied().await.expect("what is occupied");
        assert!(!occupied.contains_key(&idle));
        let wanted = request().resources;
        let [one, other] = occupied[&busy].as_slice() else { panic!("two leases: {occupied:?}") };
        assert_eq!((one.size, other.size), (wanted.size(), wanted.size()));
        assert_eq!((one.disk, one.customer, one.alone), (wanted.disk, customer, false));
        assert_eq!(
            (one.devices.as_slice(), other.devices.len()),
            (&["GPU-a".to_owned(), "GPU-b".into()][..], 0)
        );

        let held = market.store.leases_of_host(busy).await.expect("held");
        let known: Vec<_> = held.iter().map(|(id, lease)| (*id, lease.state, lease.started)).collect();
        assert_eq!(known, [(first, LeaseState::Placed, false), (second, LeaseState::Running, true)]);
        market.finish(busy, second, EXITED).await;
        assert!(!market.store.leases_of_host(busy).await.expect("held").contains_key(&second));
        assert!(market.store.leases_of_host(idle).await.expect("held").is_empty());
    })
    .await;
}
