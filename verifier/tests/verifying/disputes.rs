//! Disputed results: their hosts prove everything again, once they are free.

use nave_domain::{
    CustomerId, JobId, MicroUsd, Millis,
    dispute::DisputeState,
    host::HostState,
    job::JobRequest,
    lease::Outcome,
    verdict::{Cause, Kind},
};
use nave_proof::software::Dishonesty;
use nave_store::{DisputeRow, Disputed, Disputing, Grounds, Placement, Submission};
use nave_verifier::{Config, Verifier};

use crate::market::{Host, Market, config, look, open};

fn verifier(market: &Market) -> Verifier {
    let enforced = [Kind::Cpu, Kind::Memory, Kind::Devices].into();
    Verifier::new(Config { enforced, ..config() }, market.store.clone())
}

async fn customer(market: &Market) -> CustomerId {
    let customer = market.store.customer_ensure("ada").await.expect("a customer");
    market.store.credit(customer, "first", MicroUsd(10_000_000)).await.expect("credit");
    customer
}

/// A job that runs on a host.
async fn begin(market: &Market, customer: CustomerId, host: &Host, key: &str) -> Placement {
    let request: JobRequest = serde_json::from_str(
        r#"{"argv":["true"],"resources":{"milli_cpu":100,"memory":16777216,"disk":16777216}}"#,
    )
    .expect("a request");
    let hash = [0; 32];
    let submission = Submission { customer, key, hash, request: &request };
    let job = market.store.job_submit(&submission).await.expect("submit").job;
    let snapshot = market.store.snapshot().await.expect("a snapshot");
    let supply = &snapshot.hosts[&host.id];
    Placement {
        job,
        host: host.id,
        generation: supply.generation,
        size: request.resources.size(),
        disk: request.resources.disk,
        devices: Vec::new(),
        share: None,
        rate: supply.rate,
        run_max: Millis(60_000),
        capped_by_spend: false,
        grounds: Grounds::default(),
        gang: None,
    }
}

/// Has a host run a job and disputes what came of it.
async fn dispute(market: &Market, verifier: &mut Verifier, host: &Host, key: &str) -> JobId {
    let customer = customer(market).await;
    let placement = begin(market, customer, host, key).await;
    let lease = market.store.job_place(&placement).await.expect("place");
    market.store.lease_started(host.id, lease).await.expect("started");
    market.store.lease_finished(host.id, lease, Some(Outcome::Exited { code: 0 }), None).await.expect("done");
    let busy = begin(market, customer, host, &format!("{key} later")).await;
    let busy_lease = market.store.job_place(&busy).await.expect("place");
    market.store.lease_started(host.id, busy_lease).await.expect("started");
    let disputing = Disputing { customer, job: placement.job, attempt: None, reason: "made up" };
    assert_eq!(market.store.dispute_open(&disputing).await.expect("an answer"), Disputed::Taken(1));
    look(verifier).await;
    assert_eq!(host.state().await, HostState::Ready, "it has a job to do");
    market
        .store
        .lease_finished(host.id, busy_lease, Some(Outcome::Exited { code: 0 }), None)
        .await
        .expect("done");
    placement.job
}

async fn seen(market: &Market, job: JobId) -> DisputeRow {
    let mut all = market.store.disputes_of_jobs(&[job]).await.expect("rows");
    all.remove(&job).expect("a dispute").rows.pop().expect("a dispute")
}

async fn causes(host: &Host) -> Vec<Cause> {
    host.challenges()
        .await
        .into_iter()
        .map(|drawn| drawn.cause)
        .filter(|cause| *cause == Cause::Dispute)
        .collect()
}

#[tokio::test]
async fn a_disputed_host_proves_everything_again_and_an_honest_one_passes() {
    let market = open().await;
    let mut verifier = verifier(&market);
    let mut host = market.host_with_devices("honest", &[("SIM-1", Vec::new())]).await;
    host.prove_all(&mut verifier).await;
    let mut beside = market.host("beside", 1_000).await;
    beside.prove_all(&mut verifier).await;
    let job = dispute(&market, &mut verifier, &host, "one").await;
    look(&mut verifier).await;
    assert_eq!((host.state().await, beside.state().await), (HostState::Verifying, HostState::Ready));
    // Another verifier goes on where this one was killed.
    let mut verifier = self::verifier(&market);
    assert_eq!(seen(&market, job).await.state, DisputeState::Testing);
    host.prove_all(&mut verifier).await;
    assert_eq!(causes(&host).await.len(), 3, "cores, memory and GPUs");
    let row = seen(&market, job).await;
    assert_eq!(row.state, DisputeState::Passed);
    let verdict =
        market.store.verdict_get(host.id, row.verdict.expect("a verdict")).await.expect("it is there");
    assert_eq!((verdict.cause, verdict.code.as_deref()), (Cause::Dispute, Some("passed")));
    look(&mut verifier).await;
    assert_eq!(host.state().await, HostState::Ready, "one suite is all");
}

#[tokio::test]
async fn a_host_whose_gpu_computes_wrongly_since_it_was_tested_is_found_by_a_dispute() {
    let market = open().await;
    let mut verifier = verifier(&market);
    let mut host = market.host_with_devices("forger", &[("SIM-1", Vec::new())]).await;
    host.prove_all(&mut verifier).await;
    host.deceive(&[Dishonesty::Skip { per_mille: 500 }]);
    let job = dispute(&market, &mut verifier, &host, "one").await;
    host.prove_all(&mut verifier).await;
    assert_eq!(host.state().await, HostState::Refused);
    let row = seen(&market, job).await;
    assert_eq!(row.state, DisputeState::Failed);
    let verdict =
        market.store.verdict_get(host.id, row.verdict.expect("a verdict")).await.expect("it is there");
    assert_eq!((verdict.cause, verdict.code.as_deref()), (Cause::Dispute, Some("evidence_wrong")));
}
