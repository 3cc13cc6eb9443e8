//! Many placements at once, and gangs as they are formed.

use nave_domain::{
    CustomerId, JobId, MilliCpu,
    job::{JobRequest, JobState},
    lease::{LeaseState, Outcome, StopReason},
    wish::TermWish,
};
use nave_store::{Placement, StoreError};

use crate::market::{Market, open, request};

fn small() -> JobRequest {
    let mut small = request();
    small.resources.milli_cpu = MilliCpu(100);
    small
}

/// As a plan has them: those on one host count on one another's generations.
async fn placements(market: &Market, customer: CustomerId, number: u64) -> Vec<Placement> {
    let host = market.host("alpha").await;
    let mut placements = Vec::new();
    for later in 0..number {
        let job = market.submit(customer, &small()).await;
        let placement = market.placement(job, host).await;
        placements.push(Placement { generation: placement.generation + later, ..placement });
    }
    placements
}

#[tokio::test]
async fn many_jobs_are_placed_at_once_and_each_as_if_it_were_alone() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let placements = placements(market, customer, 5).await;
        let before = market.store.host_spec(placements[0].host).await.expect("spec").generation;
        let leases = market.store.batch_place(&placements).await.expect("placed");
        let spec = market.store.host_spec(placements[0].host).await.expect("spec");
        assert_eq!(spec.generation, before + 5);
        for (placement, lease) in placements.iter().zip(leases) {
            assert_eq!(
                spec.orders.get(&lease).map(|order| (order.job, order.attempt)),
                Some((placement.job, 1))
            );
            let attempt = market.attempt(placement.job).await;
            assert_eq!(
                (attempt.state, attempt.rate, attempt.size),
                (LeaseState::Placed, placement.rate, placement.size)
            );
            assert_eq!(market.job(customer, placement.job).await.state, JobState::Placed);
        }
    })
    .await;
}

#[tokio::test]
async fn one_that_is_stale_keeps_all_of_a_batch_from_being_placed() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let placements = placements(market, customer, 3).await;
        let refused = async |some: Vec<Placement>| {
            let before = market.state().await;
            let refused = market.store.batch_place(&some).await;
            assert!(matches!(refused, Err(StoreError::Stale(_))), "{refused:?}");
            assert_eq!(market.state().await, before);
        };
        refused(vec![placements[0].clone(), placements[2].clone()]).await;
        refused(vec![placements[0].clone(), placements[0].clone()]).await;
        market.store.job_cancel(customer, placements[1].job).await.expect("cancelled");
        refused(placements.clone()).await;
        market.store.job_place(&placements[0]).await.expect("the host has not changed");
        refused(placements[..1].to_vec()).await;
    })
    .await;
}

#[tokio::test]
async fn a_job_that_has_to_do_with_others_is_in_no_batch() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let grouped = JobRequest { group: Some("g".into()), ..small() };
        let apart = JobRequest { apart: Some(uuid::Uuid::from_u128(1)), ..small() };
        for request in [grouped, apart] {
            let job = market.submit(customer, &request).await;
            let placement = market.placement(job, host).await;
            let refused = market.store.batch_place(std::slice::from_ref(&placement)).await;
            assert!(matches!(refused, Err(StoreError::Stale("job"))), "{refused:?}");
            market.store.job_place(&placement).await.expect("by itself");
        }
    })
    .await;
}

fn member(size: u8) -> JobRequest {
    JobRequest { group: Some("g".into()), gang: Some(size), ..small() }
}

async fn gangs(market: &Market) -> Vec<(JobId, Option<JobId>)> {
    let snapshot = market.store.snapshot().await.expect("snapshot");
    snapshot.jobs.iter().map(|queued| (queued.job, queued.gang)).collect()
}

#[tokio::test]
async fn a_gang_stays_as_it_was_formed_and_a_new_job_takes_the_place_of_one_that_was_cancelled() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut jobs = Vec::new();
        for _ in 0..4 {
            jobs.push(market.submit(customer, &member(2)).await);
        }
        let [a, b, c, d] = jobs[..] else { panic!("four jobs") };
        assert_eq!(gangs(market).await, [(a, Some(a)), (b, Some(a)), (c, Some(c)), (d, Some(c))]);
        market.store.job_cancel(customer, b).await.expect("cancelled");
        assert_eq!(gangs(market).await, [(a, Some(a)), (c, Some(c)), (d, Some(c))]);
        let late = market.submit(customer, &member(2)).await;
        assert_eq!(gangs(market).await[3], (late, Some(a)));
        let other = market.submit(customer, &member(3)).await;
        let strange = market.submit(market.customer("bob").await, &member(3)).await;
        let alone = market.submit(customer, &small()).await;
        let formed = gangs(market).await;
        assert_eq!(formed[4..], [(other, Some(other)), (strange, Some(strange)), (alone, None)]);
    })
    .await;
}

#[tokio::test]
async fn the_queue_that_a_scheduler_sees_never_ends_within_a_gang() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let last = market.submit(customer, &member(3)).await;
        for _ in 0..2 {
            market.submit(customer, &member(3)).await;
        }
        sqlx::query(
            "insert into jobs (job_id, customer_id, idempotency_key, request_sha256, request, max_spend, queued_at_ms)
             select gen_random_uuid(), $1, 'before ' || n, '', request - 'gang' - 'group', 0, now_ms()
             from jobs, generate_series(1, 999) n where job_id = $2",
        )
        .bind(customer.0)
        .bind(last.0)
        .execute(&market.sql)
        .await
        .expect("older jobs");
        sqlx::query(
            "update jobs set job_id = ('00000000-0000-4000-8000-' || lpad(to_hex(substr(idempotency_key, 8)::int), 12, '0'))::uuid
             where idempotency_key like 'before %'",
        )
        .execute(&market.sql)
        .await
        .expect("with older ids");
        let seen = gangs(market).await;
        assert_eq!(seen.len(), 1_002);
        assert_eq!(seen.iter().filter(|(_, gang)| *gang == Some(last)).count(), 3);
        sqlx::query("delete from jobs where idempotency_key like 'before %'").execute(&market.sql).await.expect("gone");
    })
    .await;
}

#[tokio::test]
async fn a_spot_lease_yields_with_notice_is_paid_for_what_it_ran_and_its_job_runs_again() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let spot = JobRequest { term: TermWish::Spot, ..request() };
        let (job, lease) = market.run(customer, host, &spot).await;
        market.use_up(host, lease, 5_000).await;
        let yielding =
            async || market.store.snapshot().await.expect("snapshot").hosts[&host].yielding.clone();
        assert_eq!(
            yielding().await.iter().map(|lease| (lease.lease, lease.is_ending)).collect::<Vec<_>>(),
            [(lease, false)]
        );
        let noticed = async || market.store.leases_open().await.expect("open")[0].noticed;
        assert_eq!(noticed().await, None);
        let [other, ran] = [market.submit(customer, &request()).await, job];
        // Who does not wait, or no more, gets no place.
        market.store.lease_notice(lease, ran).await.expect("noticed");
        market.store.notices_clear().await.expect("cleared");
        assert_eq!(noticed().await, None);
        market.store.lease_notice(lease, other).await.expect("noticed");
        market.store.notices_clear().await.expect("cleared");
        assert!(noticed().await.is_some());
        assert!(yielding().await[0].is_ending);
        market.store.lease_stop(host, lease, StopReason::Preempted).await.expect("stopped");
        market.store.lease_finished(host, lease, None, None).await.expect("finished");
        let attempt = market.attempt(job).await;
        assert_eq!(attempt.outcome, Some(Outcome::Preempted));
        assert!(attempt.charged.0 > 0, "what ran is paid for");
        let row = market.job(customer, job).await;
        assert_eq!(
            (row.state, row.reason.map(|(code, _)| code)),
            (JobState::Queued, Some("preempted".into()))
        );
        let snapshot = market.store.snapshot().await.expect("snapshot");
        assert!(snapshot.jobs[0].failed_on.is_empty(), "it is nobody's fault");
    })
    .await;
}
