//! Submitting: the hold and the job come together or not at all, and once.

use nave_domain::{MicroUsd, job::JobState, ledger::PostingKind};
use nave_store::StoreError;
use tokio::task::JoinSet;

use crate::market::{hash, open, request};

#[tokio::test]
async fn an_accepted_job_waits_and_its_spend_cap_is_held() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let job = market.submit(customer, &request()).await;
        assert_eq!(market.job(customer, job).await.state, JobState::Queued);
        assert_eq!(market.money(customer).await, (9_500_000, 500_000));
        let lines = market.store.ledger_of_job(job).await.expect("lines");
        let kinds: Vec<_> = lines.iter().map(|line| (line.kind, line.amount)).collect();
        assert_eq!(kinds, [(PostingKind::Hold, MicroUsd(500_000))]);
    })
    .await;
}

#[tokio::test]
async fn the_same_key_and_request_return_the_same_job_and_hold_once() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let first = market.try_submit(customer, "key", &request()).await.expect("submit");
        let again = market.try_submit(customer, "key", &request()).await.expect("replay");
        assert!(first.fresh && !again.fresh);
        assert_eq!(first.job, again.job);
        assert_eq!(market.money(customer).await, (9_500_000, 500_000));
    })
    .await;
}

#[tokio::test]
async fn a_replay_is_answered_even_when_the_balance_would_not_cover_it_again() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut all = request();
        all.max_spend = MicroUsd(10_000_000);
        let first = market.try_submit(customer, "key", &all).await.expect("submit");
        let again = market.try_submit(customer, "key", &all).await.expect("replay");
        assert_eq!(first.job, again.job);
    })
    .await;
}

#[tokio::test]
async fn a_key_used_for_another_request_is_refused_and_changes_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        market.try_submit(customer, "key", &request()).await.expect("submit");
        let before = market.state().await;
        let mut other = request();
        other.argv.push("other".into());
        let refused = market.try_submit(customer, "key", &other).await;
        assert!(matches!(refused, Err(StoreError::KeyReused)), "{refused:?}");
        let asked = market.store.job_submitted(customer, "key", hash("other")).await;
        assert!(matches!(asked, Err(StoreError::KeyReused)), "{asked:?}");
        assert_eq!(market.state().await, before);
    })
    .await;
}

#[tokio::test]
async fn a_balance_too_low_leaves_nothing_behind() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let before = market.state().await;
        let mut dear = request();
        dear.max_spend = MicroUsd(10_000_001);
        let refused = market.try_submit(customer, "key", &dear).await;
        assert!(matches!(refused, Err(StoreError::BalanceTooLow)), "{refused:?}");
        assert_eq!(market.state().await, before);
        dear.max_spend = MicroUsd(10_000_000);
        assert!(market.try_submit(customer, "key", &dear).await.expect("the key is still free").fresh);
    })
    .await;
}

#[tokio::test]
async fn a_customer_who_never_had_credit_is_refused() {
    open(async |market| {
        let poor = market.store.customer_ensure("poor").await.expect("a customer");
        let refused = market.try_submit(poor, "key", &request()).await;
        assert!(matches!(refused, Err(StoreError::BalanceTooLow)), "{refused:?}");
    })
    .await;
}

#[tokio::test]
async fn two_customers_may_choose_the_same_key() {
    open(async |market| {
        let [ada, bob] = [market.customer("ada").await, market.customer("bob").await];
        let of_ada = market.try_submit(ada, "key", &request()).await.expect("submit");
        let of_bob = market.try_submit(bob, "key", &request()).await.expect("submit");
        assert!(of_ada.fresh && of_bob.fresh);
        assert_ne!(of_ada.job, of_bob.job);
        assert_eq!(market.store.job_submitted(bob, "key", hash_of()).await.expect("found"), Some(of_bob.job));
        let foreign = market.store.job_get(bob, of_ada.job).await;
        assert!(matches!(foreign, Err(StoreError::NotFound("job"))), "{foreign:?}");
    })
    .await;
}

fn hash_of() -> [u8; 32] {
    hash(&serde_json::to_string(&request()).expect("serialise"))
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_under_one_key_are_one_job() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut tasks = JoinSet::new();
        for _ in 0..16 {
            let store = market.store.clone();
            tasks.spawn(async move {
                let request = request();
                let submission =
                    nave_store::Submission { customer, key: "key", hash: hash_of(), request: &request };
                store.job_submit(&submission).await.expect("submit")
            });
        }
        let answers = tasks.join_all().await;
        assert_eq!(answers.iter().filter(|answer| answer.fresh).count(), 1);
        assert!(answers.iter().all(|answer| answer.job == answers[0].job));
        assert_eq!(market.money(customer).await, (9_500_000, 500_000));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balance_is_never_held_twice_over() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut tasks = JoinSet::new();
        for number in 0..30 {
            let store = market.store.clone();
            tasks.spawn(async move {
                let request = request();
                let key = number.to_string();
                let submission =
                    nave_store::Submission { customer, key: &key, hash: hash_of(), request: &request };
                store.job_submit(&submission).await
            });
        }
        let accepted = tasks.join_all().await.into_iter().filter(Result::is_ok).count();
        assert_eq!(accepted, 20, "ten dollars cover twenty holds of fifty cents");
        assert_eq!(market.money(customer).await, (0, 10_000_000));
    })
    .await;
}

#[tokio::test]
async fn jobs_are_listed_newest_first_and_in_pieces() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let mut jobs = Vec::new();
        for _ in 0..5 {
            jobs.push(market.submit(customer, &request()).await);
        }
        jobs.reverse();
        let list = async |state, before| {
            let rows = market.store.job_list(customer, state, before, 2).await.expect("list");
            rows.into_iter().map(|row| row.job).collect::<Vec<_>>()
        };
        assert_eq!(list(None, None).await, jobs[..2]);
        assert_eq!(list(None, Some(jobs[1])).await, jobs[2..4]);
        assert_eq!(list(Some(JobState::Queued), Some(jobs[3])).await, jobs[4..]);
        assert_eq!(list(Some(JobState::Running), None).await, []);
    })
    .await;
}
