//! Placing: only what is still as the planner saw it, and only once.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, MicroUsd, MilliCpu, MilliGpu,
    fraction::{Fraction, Share, Shared, Tenant},
    host::{Term, Trust},
    job::{Isolation, JobRequest, JobState},
    lease::{ChosenFor, LeaseState},
    rate::Rate,
};
use nave_store::{Grounds, HostPatch, ORDERS_BYTES_MAX, Past, Placement, StoreError};
use tokio::task::JoinSet;

use crate::market::{EXITED, RATE, device, inventory, open, request};

#[tokio::test]
async fn a_placed_job_stands_in_its_hosts_spec_under_a_new_generation() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let before = market.store.host_spec(host).await.expect("spec");
        let lease = market.place(job, host).await;
        let spec = market.store.host_spec(host).await.expect("spec");
        assert!(spec.generation > before.generation);
        let order = spec.orders.get(&lease).expect("an order");
        assert_eq!((order.job, order.attempt, order.stop), (job, 1, None));
        assert_eq!(market.job(customer, job).await.state, JobState::Placed);
        assert_eq!(market.attempt(job).await.state, LeaseState::Placed);
    })
    .await;
}

#[tokio::test]
async fn a_host_whose_spec_moved_on_takes_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let jobs = [market.submit(customer, &request()).await, market.submit(customer, &request()).await];
        let old = market.placement(jobs[1], host).await;
        market.place(jobs[0], host).await;
        let before = market.state().await;
        let refused = market.store.job_place(&old).await;
        assert!(matches!(refused, Err(StoreError::Stale("host"))), "{refused:?}");
        assert_eq!(market.state().await, before);
    })
    .await;
}

#[tokio::test]
async fn a_placement_at_a_price_that_has_changed_is_stale() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let old = market.placement(job, host).await;
        let rate = Rate { vcpu_hour: MicroUsd(1), ..RATE };
        let dearer = HostPatch { rate: Some(rate), ..HostPatch::default() };
        market.store.host_patch("hotkey of alpha", host, dearer).await.expect("another price");
        let refused = market.store.job_place(&old).await;
        assert!(matches!(refused, Err(StoreError::Stale("host"))), "{refused:?}");
        let fresh = market.placement(job, host).await;
        assert_eq!(fresh.rate, rate);
        market.store.job_place(&fresh).await.expect("place at the new price");
    })
    .await;
}

#[tokio::test]
async fn a_placement_on_what_a_host_no_longer_has_is_stale() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let unchanged = market.placement(job, host).await;
        market.hear(host).await;
        assert_eq!(market.placement(job, host).await, unchanged, "the same again is no change");
        let mut less = inventory();
        less.egress.clear();
        market.settle(host).await;
        market.store.host_hear(host, 2, 1, 0, &less).await.expect("hear");
        let refused = market.store.job_place(&unchanged).await;
        assert!(matches!(refused, Err(StoreError::Stale("host"))), "{refused:?}");
        assert_eq!(market.job(customer, job).await.state, JobState::Queued);
    })
    .await;
}

#[tokio::test]
async fn an_unreadable_request_is_left_out_and_the_others_are_planned() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let [strange, plain] =
            [market.submit(customer, &request()).await, market.submit(customer, &request()).await];
        sqlx::query("update jobs set request = request || '{\"later\": 1}' where job_id = $1")
            .bind(strange.0)
            .execute(&market.sql)
            .await
            .expect("a later version's request");
        let snapshot = market.store.snapshot().await.expect("snapshot");
        let waiting: Vec<_> = snapshot.jobs.iter().map(|queued| queued.job).collect();
        assert_eq!(waiting, [plain]);
        market.place(plain, host).await;
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_carries_no_commands() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut long = request();
        long.argv = vec!["x".repeat(200_000)];
        long.env.insert("LONG".into(), "x".repeat(50_000));
        market.submit(customer, &long).await;
        let snapshot = market.store.snapshot().await.expect("snapshot");
        let planned = serde_json::to_string(&snapshot.jobs[0].request).expect("serialise");
        assert!(planned.len() < 1_000, "{} bytes of a job that waits are read at every look", planned.len());
        assert_eq!(snapshot.jobs[0].request.resources, long.resources);
        let wanted = snapshot.jobs[0].order_bytes;
        assert!((250_000..260_000).contains(&wanted), "what they take in a spec is known: {wanted} bytes");
        let host = market.host("alpha").await;
        market.place(snapshot.jobs[0].job, host).await;
        let hosts = market.store.snapshot().await.expect("snapshot").hosts;
        assert_eq!(hosts[&host].order_bytes, wanted);
    })
    .await;
}

/// Otherwise one customer's long commands fill the document that a host fetches, and orders
/// of others never reach it.
#[tokio::test]
async fn a_host_takes_no_more_orders_than_fit_into_its_spec() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut long = request();
        long.argv = vec!["x".repeat(250_000)];
        long.resources.milli_cpu = MilliCpu(10);
        long.max_spend = MicroUsd(1_000);
        let mut placed = 0;
        let refused = loop {
            let job = market.submit(customer, &long).await;
            match market.store.job_place(&market.placement(job, host).await).await {
                Ok(_) => placed += 1,
                Err(error) => break error,
            }
            assert!(placed < 17, "more than four MiB of orders");
        };
        assert!(matches!(refused, StoreError::Stale("host")), "{refused:?}");
        assert!(placed > 10, "{placed}");
        let snapshot = market.store.snapshot().await.expect("snapshot");
        let more = snapshot.hosts[&host].order_bytes + snapshot.jobs[0].order_bytes;
        assert!(more > ORDERS_BYTES_MAX, "a planner sees it: {more} bytes");
        for lease in market.store.host_spec(host).await.expect("spec").orders.keys() {
            market.finish(host, *lease, EXITED).await;
        }
        let job = market.submit(customer, &long).await;
        market.place(job, host).await;
        let supply = market.store.snapshot().await.expect("snapshot").hosts.remove(&host).expect("supply");
        assert!(supply.order_bytes < 260_000, "orders are forgotten with their leases");
    })
    .await;
}

#[tokio::test]
async fn a_suspect_host_takes_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let placement = market.placement(job, host).await;
        sqlx::query("update hosts set state = 'suspect'").execute(&market.sql).await.expect("suspect");
        let refused = market.store.job_place(&placement).await;
        assert!(matches!(refused, Err(StoreError::Stale("host"))), "{refused:?}");
        assert_eq!(market.job(customer, job).await.state, JobState::Queued);
    })
    .await;
}

#[tokio::test]
async fn a_job_that_does_not_wait_any_more_is_not_placed() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let [alpha, beta] = [market.host("alpha").await, market.host("beta").await];
        let job = market.submit(customer, &request()).await;
        let [first, second] = [market.placement(job, alpha).await, market.placement(job, beta).await];
        market.store.job_place(&first).await.expect("place");
        let before = market.state().await;
        let refused = market.store.job_place(&second).await;
        assert!(matches!(refused, Err(StoreError::Stale("job"))), "{refused:?}");
        assert_eq!(market.state().await, before);
        let failed = market.store.job_fail_queued(job, "queue_timeout", "too late").await;
        assert!(matches!(failed, Err(StoreError::Stale("job"))), "{failed:?}");
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_job_is_not_placed() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let placement = market.placement(job, host).await;
        market.store.job_cancel(customer, job).await.expect("cancel");
        let refused = market.store.job_place(&placement).await;
        assert!(matches!(refused, Err(StoreError::Stale("job"))), "{refused:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_schedulers_at_once_place_a_job_once() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let hosts = [market.host("alpha").await, market.host("beta").await, market.host("gamma").await];
        let job = market.submit(customer, &request()).await;
        let mut placements = Vec::new();
        for number in 0..24 {
            placements.push(market.placement(job, hosts[number % 3]).await);
        }
        let mut tasks = JoinSet::new();
        for placement in placements {
            let store = market.store.clone();
            tasks.spawn(async move { store.job_place(&placement).await });
        }
        let answers = tasks.join_all().await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        assert!(
            answers.iter().all(|answer| matches!(answer, Ok(_) | Err(StoreError::Stale(_)))),
            "{answers:?}"
        );
        assert_eq!(market.attempts(job).await.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_schedulers_at_once_never_oversell_a_host() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut placements = Vec::new();
        for _ in 0..10 {
            let job = market.submit(customer, &request()).await;
            placements.push(market.placement(job, host).await);
        }
        let mut tasks = JoinSet::new();
        for placement in placements {
            let store = market.store.clone();
            tasks.spawn(async move { store.job_place(&placement).await.is_ok() });
        }
        let placed = tasks.join_all().await.into_iter().filter(|placed| *placed).count();
        assert_eq!(placed, 1, "all decided on the same generation of the host");
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_shows_what_is_leased_and_who_waits() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut with_gpus = inventory();
        with_gpus.devices = vec![device("GPU-a"), device("GPU-b")];
        let host = market.host_with("alpha", RATE, &with_gpus).await;
        let [first, second] =
            [market.submit(customer, &request()).await, market.submit(customer, &request()).await];
        let mut placement = market.placement(first, host).await;
        placement.devices = vec!["GPU-b".into()];
        market.store.job_place(&placement).await.expect("place");
        let snapshot = market.store.snapshot().await.expect("snapshot");
        let supply = &snapshot.hosts[&host];
        assert_eq!(supply.milli_cpu_used, request().resources.milli_cpu);
        assert_eq!(supply.memory_used, request().resources.memory);
        assert_eq!(supply.disk_used, request().resources.disk);
        assert_eq!(supply.devices_used, ["GPU-b"]);
        let waiting: Vec<_> = snapshot.jobs.iter().map(|queued| queued.job).collect();
        assert_eq!(waiting, [second]);
        assert_eq!(snapshot.jobs[0].left, request().max_spend);
    })
    .await;
}

#[tokio::test]
async fn a_job_that_cannot_be_placed_fails_with_its_reason_and_gets_its_hold_back() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let job = market.submit(customer, &request()).await;
        market.store.jobs_wait([(job, "no_hosts", "no host is ready")].into_iter()).await.expect("waits");
        let waiting = market.job(customer, job).await;
        assert_eq!(waiting.reason, Some(("no_hosts".into(), "no host is ready".into())));
        market.store.job_fail_queued(job, "queue_timeout", "too late").await.expect("fail");
        let failed = market.job(customer, job).await;
        assert_eq!(failed.state, JobState::Failed);
        assert_eq!(failed.reason, Some(("queue_timeout".into(), "too late".into())));
        assert_eq!(market.money(customer).await, (10_000_000, 0));
        market
            .store
            .jobs_wait([(job, "no_hosts", "no host is ready")].into_iter())
            .await
            .expect("too late to wait");
        assert_eq!(market.job(customer, job).await, failed);
    })
    .await;
}

#[tokio::test]
async fn a_customer_with_thousands_of_jobs_does_not_hide_those_of_others() {
    open(async |market| {
        let [eve, ada] = [market.customer("eve").await, market.customer("ada").await];
        let mut free = request();
        free.max_spend = MicroUsd::ZERO;
        let first = market.submit(eve, &free).await;
        sqlx::query(
            "insert into jobs (job_id, customer_id, idempotency_key, request_sha256, request, max_spend, queued_at_ms)
             select lpad(to_hex(n), 32, '0')::uuid, customer_id, 'flood ' || n, request_sha256, request, 0, now_ms()
             from jobs, generate_series(1, 1500) n",
        )
        .execute(&market.sql)
        .await
        .expect("a flood of older jobs");
        let of_ada = [market.submit(ada, &request()).await, market.submit(ada, &request()).await];
        let snapshot = market.store.snapshot().await.expect("snapshot");
        let waiting: Vec<_> = snapshot.jobs.iter().map(|queued| queued.job).collect();
        assert_eq!(waiting.len(), 1_000);
        assert!(waiting.is_sorted(), "oldest first");
        assert!(of_ada.iter().all(|job| waiting.contains(job)));
        assert!(!waiting.contains(&first), "eve's newest waits for the next snapshot");
    })
    .await;
}

#[tokio::test]
async fn a_gang_is_placed_as_a_whole_or_not_at_all() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let [alpha, beta] = [market.host("alpha").await, market.host("beta").await];
        let member = JobRequest { group: Some("g".into()), gang: Some(3), ..request() };
        let mut jobs = Vec::new();
        for _ in 0..3 {
            jobs.push(market.submit(customer, &member).await);
        }
        let mut gang = Vec::new();
        for (job, host) in jobs.iter().zip([beta, alpha, beta]) {
            gang.push(Placement { gang: Some(jobs[0]), ..market.placement(*job, host).await });
        }
        gang[2].generation += 1;
        let mut broken = gang.clone();
        broken[1].generation += 1;
        let before = market.state().await;
        let refused = market.store.gang_place(&broken).await;
        assert!(matches!(refused, Err(StoreError::Stale("host"))), "{refused:?}");
        assert_eq!(market.state().await, before, "nobody has begun");

        let leases = market.store.gang_place(&gang).await.expect("place");
        assert_eq!(leases.len(), 3);
        for (job, host) in jobs.iter().zip([beta, alpha, beta]) {
            assert_eq!(
                (market.job(customer, *job).await.state, market.attempt(*job).await.host),
                (JobState::Placed, host)
            );
        }
        let spec = market.store.host_spec(alpha).await.expect("spec");
        let order = spec.orders.values().next().expect("an order");
        assert_eq!(order.peers.len(), 2, "they know one another");
    })
    .await;
}

#[tokio::test]
async fn it_is_written_down_why_a_host_was_chosen_and_what_was_known_then() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let job = market.submit(customer, &request()).await;
        let grounds = Grounds {
            reason: ChosenFor::Cheapest,
            trust: Trust::Verified,
            baseline: Some(MicroUsd(2_490_000)),
            term: Term::OnDemand,
        };
        let placement = Placement { grounds: grounds.clone(), ..market.placement(job, host).await };
        market.store.job_place(&placement).await.expect("place");
        assert_eq!(market.attempt(job).await.grounds, grounds);
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_shows_on_which_terms_hosts_are_there_and_who_is_on_them() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut with_gpu = inventory();
        with_gpu.devices = vec![device("GPU-a")];
        let [plain, gpu] = [market.host("plain").await, market.host_with("gpu", RATE, &with_gpu).await];
        let patch = HostPatch {
            region: "eu-1".parse().ok(),
            term: Some(nave_domain::host::Term::Spot),
            ..HostPatch::default()
        };
        market.store.host_patch("hotkey of plain", plain, patch).await.expect("patched");
        let alone = JobRequest { isolation: Isolation::Host, ..request() };
        market.run(customer, plain, &alone).await;
        let hosts = market.store.snapshot().await.expect("snapshot").hosts;
        let terms = &hosts[&plain].terms;
        assert_eq!(terms.region.as_ref().map(nave_domain::wish::Region::as_str), Some("eu-1"));
        assert_eq!((terms.term, terms.trust), (nave_domain::host::Term::Spot, Trust::Verified));
        assert_eq!(hosts[&plain].tenants, [(customer, true)]);
        assert_eq!(hosts[&gpu].tenants, []);
        assert_eq!(hosts[&gpu].terms.trust, Trust::Unrated, "its GPU has proven nothing");
    })
    .await;
}

#[tokio::test]
async fn a_share_of_a_gpu_stands_in_the_order_and_in_the_next_snapshot_with_whose_it_is() {
    open(async |market| {
        let (ada, host) = (market.customer("ada").await, market.host("alpha").await);
        let fraction = Fraction { milli: MilliGpu(250), vram: Bytes(8 * Bytes::GIB) };
        let mut leases = Vec::new();
        for batched in [false, true] {
            let job = market.submit(ada, &request()).await;
            let mut placement = market.placement(job, host).await;
            (placement.devices, placement.share) = (vec!["GPU-1".into()], Some(fraction));
            placement.size.milli_gpu = MilliGpu(250);
            leases.push(match batched {
                false => market.store.job_place(&placement).await.expect("placed"),
                true => market.store.batch_place(&[placement]).await.expect("placed")[0],
            });
        }
        let snapshot = market.store.snapshot().await.expect("snapshot");
        let supply = snapshot.hosts.get(&host).expect("the host takes jobs");
        assert!(supply.devices_used.is_empty(), "nobody has it whole");
        let taken = Shared { tenant: ada, fraction, count: 2 };
        assert_eq!(supply.shared, BTreeMap::from([("GPU-1".to_owned(), taken)]));
        let spec = market.store.host_spec(host).await.expect("spec");
        let share = Share { fraction, tenant: Tenant::of(host, ada) };
        for lease in &leases {
            let order = &spec.orders[lease];
            assert_eq!((&order.devices, order.share), (&vec!["GPU-1".to_owned()], Some(share)));
        }
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_shows_what_a_host_and_its_owners_other_hosts_have_done_and_lost() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let [alpha, beta] = [market.host("alpha").await, market.host("beta").await];
        let (_, served) = market.run(customer, alpha, &request()).await;
        market.use_up(alpha, served, 5_000).await;
        market.finish(alpha, served, EXITED).await;
        let (_, lost) = market.run(customer, alpha, &request()).await;
        market.use_up(alpha, lost, 3_000).await;
        market.store.lease_lost(alpha, lost).await.expect("lost");
        let past = async |host| {
            let host = market.store.snapshot().await.expect("snapshot").hosts.remove(&host).expect("supply");
            let of = |past: Past| (past.served.0 / 1_000, past.losses);
            (of(host.past), of(host.past_elsewhere))
        };
        assert_eq!((past(alpha).await, past(beta).await), (((8, 1), (0, 0)), ((0, 0), (0, 0))));

        let owner = "update hosts set hotkey = 'hotkey of alpha' where host_id = $1";
        sqlx::query(owner).bind(beta.0).execute(&market.sql).await.expect("another owner");
        assert_eq!(past(beta).await, ((0, 0), (8, 1)));

        let long = "update hosts set served_ms = 7200000000, losses = 3 where host_id = $1";
        sqlx::query(long).bind(alpha.0).execute(&market.sql).await.expect("a long past");
        let (_, lost) = market.run(customer, alpha, &request()).await;
        market.use_up(alpha, lost, 4_000).await;
        market.store.lease_lost(alpha, lost).await.expect("lost");
        assert_eq!(past(alpha).await.0, (3_600_002, 2), "what is long ago counts half");
    })
    .await;
}
