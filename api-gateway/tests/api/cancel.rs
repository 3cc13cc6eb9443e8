//! Cancelling, at every state of a job.

use nave_domain::{
    MicroUsd,
    job::JobState,
    lease::{Outcome, StopReason},
};
use nave_sdk::wire::{
    host::{Exit, LeaseReport},
    rest::{Balance, Job},
};

use crate::setup::{Market, read};

async fn cancel(market: &Market, job: &Job) -> Job {
    read(market.post(&format!("/v1/jobs/{}/cancel", job.job)).send().await.expect("an answer")).await
}

async fn assert_nothing_is_held(market: &Market) {
    assert_eq!(market.fetch::<Balance>("/v1/balance").await.held, MicroUsd(0));
    market.assert_books_balance().await;
}

#[tokio::test]
async fn a_queued_job_is_cancelled_at_once() {
    let market = Market::start().await;
    let job = cancel(&market, &market.submit().await).await;
    assert_eq!(
        (job.state, job.actions),
        (JobState::Cancelled, vec!["logs".to_owned(), "receipt".to_owned()])
    );
    assert_nothing_is_held(&market).await;
}

#[tokio::test]
async fn a_placed_job_is_cancelled_when_its_host_confirms() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    assert_eq!(cancel(&market, &job).await.state, JobState::Cancelling);
    let spec = host.spec(0, 0).await.expect("a spec");
    assert_eq!(spec.leases[&lease].stop, Some(StopReason::Cancelled));
    host.report(&[(lease, LeaseReport::Preparing)]).await;
    assert_eq!(cancel(&market, &job).await.state, JobState::Cancelling, "again changes nothing");
    host.report(&[(lease, LeaseReport::Finished { exit: Exit::Stopped, result: None })]).await;
    let job: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!((job.state, job.attempts[0].outcome.clone()), (JobState::Cancelled, Some(Outcome::Cancelled)));
    assert_nothing_is_held(&market).await;
}

#[tokio::test]
async fn a_running_job_is_cancelled_when_its_host_confirms_whatever_its_exit() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    for exit in [Exit::Stopped, Exit::Code { code: 0 }, Exit::Code { code: 143 }, Exit::Fenced] {
        let (job, lease) = market.placed(&host).await;
        host.report(&[(lease, LeaseReport::Running)]).await;
        assert_eq!(cancel(&market, &job).await.state, JobState::Cancelling);
        host.report(&[(lease, LeaseReport::Running)]).await;
        host.report(&[(lease, LeaseReport::Finished { exit, result: None })]).await;
        assert_eq!(cancel(&market, &job).await.state, JobState::Cancelled);
    }
    assert_nothing_is_held(&market).await;
}

#[tokio::test]
async fn a_job_whose_command_has_ended_is_cancelled_and_stays_so() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    let exit = Exit::Code { code: 0 };
    host.report(&[(lease, LeaseReport::Running)]).await;
    host.report(&[(lease, LeaseReport::Exited { exit: exit.clone() })]).await;
    assert_eq!(cancel(&market, &job).await.state, JobState::Cancelling);
    host.report(&[(lease, LeaseReport::Finished { exit, result: None })]).await;
    assert_eq!(cancel(&market, &job).await.state, JobState::Cancelled);
    assert_nothing_is_held(&market).await;
}

#[tokio::test]
async fn a_final_job_stays_as_it_is() {
    let market = Market::start().await;
    let mut host = market.host("h").await;
    let (job, lease) = market.placed(&host).await;
    host.report(&[(lease, LeaseReport::Finished { exit: Exit::Code { code: 0 }, result: None })]).await;
    let done: Job = market.fetch(&format!("/v1/jobs/{}", job.job)).await;
    assert_eq!(done.state, JobState::Succeeded);
    assert_eq!(cancel(&market, &job).await, done);
    assert_nothing_is_held(&market).await;
}
