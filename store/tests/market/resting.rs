//! What machines cost, what came of them, and what that says of others.

use nave_domain::{HostId, MicroUsd, Millis, lease::Outcome, ledger::PostingKind};
use nave_store::{MachineEnd, MachineEnding, MachineWrite};
use serde_json::json;
use uuid::Uuid;

use crate::{
    challenge::draw,
    cloud::{BROKE, IDLE, PLATFORM, costs, row, want, works},
    market::{Market, open, request},
    verdict::{ban, failed, host_of, is_in_doubt, mistrusted},
};

/// An ending now.
async fn now(market: &Market, ending: MachineEnding) -> MachineEnding {
    MachineEnding { at: market.store.now().await.expect("the time"), ..ending }
}

async fn released(market: &Market) -> MachineEnding {
    now(market, MachineEnding { name: "released", ..IDLE }).await
}

/// A machine that is wanted and that nobody has asked for yet.
async fn wanted(market: &Market) -> Uuid {
    let machine = Uuid::now_v7();
    want(market, machine).await.expect("wanted");
    machine
}

/// What came of machines lately: what they cost, and whether they worked.
async fn ended(market: &Market) -> Vec<(i64, bool)> {
    let ends = market.store.machine_ends(Millis(3_600_000)).await.expect("ends");
    ends.iter().map(|MachineEnd { cost, has_worked, .. }| (cost.0, *has_worked)).collect()
}

/// Postings for machines: from, to, how much.
async fn rents(market: &Market) -> Vec<(String, String, i64)> {
    sqlx::query_as(
        "select f.account, t.account, t.amount from ledger_postings p
         join ledger_entries f on f.posting_id = p.posting_id and f.amount < 0
         join ledger_entries t on t.posting_id = p.posting_id and t.amount > 0
         where p.kind = $1 order by p.posting_id",
    )
    .bind(PostingKind::Rent.as_str())
    .fetch_all(&market.sql)
    .await
    .expect("postings")
}

#[tokio::test]
async fn what_a_machine_costs_stands_in_the_ledger_as_it_stands_in_its_row() {
    open(async |market| {
        let machine = wanted(market).await;
        for (cost, paid) in [(0, 0), (700, 700), (700, 700), (1_000, 1_000), (900, 900)] {
            assert!(costs(market, machine, None, cost).await);
            assert_eq!(market.store.clouds_paid().await.expect("an account"), MicroUsd(paid));
            assert_eq!(market.store.ledger_audit().await.expect("an audit"), Vec::<String>::new());
        }
        let [treasury, clouds] = ["treasury", "clouds"].map(str::to_owned);
        let (there, back) = ((treasury.clone(), clouds.clone()), (clouds, treasury));
        let expected = [(there.clone(), 700), (there, 300), (back, 100)];
        assert_eq!(rents(market).await, expected.map(|((from, to), amount)| (from, to, amount)));
    })
    .await;
}

#[tokio::test]
async fn a_cost_that_is_written_twice_or_too_late_is_posted_once() {
    open(async |market| {
        let machine = wanted(market).await;
        let before = row(market, machine).await;
        assert!(costs(market, machine, None, 50).await);
        // A keeper that stood still since it had read the row.
        let late = MachineWrite {
            machine,
            version: before.version,
            cloud: "lambda",
            made_at: before.made_at,
            asked_at: None,
            ending: None,
            is_closed: false,
            cost: MicroUsd(50),
            known: json!({}),
        };
        assert!(!market.store.machine_write(&late, None).await.expect("the database"));
        // A machine that only turned up is paid for, too, and turns up once.
        let stray = Uuid::now_v7();
        let turned_up = MachineWrite { machine: stray, version: 0, cost: MicroUsd(30), ..late };
        assert!(market.store.machine_write(&turned_up, None).await.expect("the database"));
        assert!(!market.store.machine_write(&turned_up, None).await.expect("the database"));
        assert_eq!(rents(market).await.iter().map(|rent| rent.2).collect::<Vec<_>>(), [50, 30]);
    })
    .await;
}

#[tokio::test]
async fn an_audit_finds_a_machine_that_says_something_else_than_the_ledger() {
    open(async |market| {
        let machine = wanted(market).await;
        assert!(costs(market, machine, None, 50).await);
        let change = async |by: i64| {
            let done =
                sqlx::query("update machines set cost = cost + $1").bind(by).execute(&market.sql).await;
            done.expect("changed");
            market.store.ledger_audit().await.expect("an audit")
        };
        let problems = change(1).await;
        assert!(
            problems.len() == 1 && problems[0].contains("has cost 51, the ledger says 50"),
            "{problems:?}"
        );
        assert_eq!(change(-1).await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_machine_that_cost_money_and_had_no_lease_came_to_nothing_whether_it_enrolled_or_not() {
    open(async |market| {
        let never_enrolled = wanted(market).await;
        assert!(costs(market, never_enrolled, Some(now(market, BROKE).await), 10).await);
        let (useless, _) = works(market).await;
        assert!(costs(market, useless, Some(now(market, IDLE).await), 20).await);
        assert_eq!(ended(market).await, [(20, false), (10, false)]);
        let [latest, _] = &market.store.machine_ends(Millis(3_600_000)).await.expect("ends")[..] else {
            panic!("two ends")
        };
        assert_eq!((&*latest.cloud, &*latest.offer, &*latest.region), ("lambda", "small", "us"));
        assert_eq!(market.store.machine_ends(Millis(0)).await.expect("ends"), [], "it was not that late");
    })
    .await;
}

#[tokio::test]
async fn a_machine_that_worked_came_to_something() {
    open(async |market| {
        let (machine, host) = works(market).await;
        let customer = market.customer("customer").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        assert!(market.store.machines_charged(&[machine]).await.expect("charges").is_empty());
        market.use_up(host, lease, 5_000).await;
        market.finish(host, lease, Outcome::Exited { code: 0 }).await;
        assert!(costs(market, machine, Some(now(market, BROKE).await), 10).await);
        assert_eq!(ended(market).await, [(10, true)]);
        let charged = market.store.machines_charged(&[machine]).await.expect("charges");
        let lines = market.store.ledger_of_job(job).await.expect("postings").into_iter();
        let paid = lines.filter(|line| line.kind == PostingKind::Charge).map(|line| line.amount.0).sum();
        assert!(
            paid > 0 && charged == std::collections::BTreeMap::from([(machine, MicroUsd(paid))]),
            "{charged:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn nothing_is_held_against_an_offer_for_what_was_let_go_or_whose_job_needs_it_no_more() {
    open(async |market| {
        let unasked = wanted(market).await;
        assert!(costs(market, unasked, Some(released(market).await), 0).await);
        assert_eq!(ended(market).await, [], "it was let go before it cost anything");
        let customer = market.customer("customer").await;
        let cancelled = wanted(market).await;
        let job = row(market, cancelled).await.job.expect("a job");
        market.store.job_cancel(customer, job).await.expect("cancelled");
        assert!(costs(market, cancelled, Some(released(market).await), 10).await);
        let elsewhere = wanted(market).await;
        let job = row(market, elsewhere).await.job.expect("a job");
        let miner = market.host("miner").await;
        let placement = market.placement(job, miner).await;
        market.store.job_place(&placement).await.expect("placed");
        assert!(costs(market, elsewhere, Some(released(market).await), 10).await);
        assert_eq!(ended(market).await, []);
        // But a host that failed its proof is to blame, whatever became of the job.
        let (refused, host) = works(market).await;
        let job = row(market, refused).await.job.expect("a job");
        market.store.job_cancel(customer, job).await.expect("cancelled");
        sqlx::query("update hosts set refusals = 1 where host_id = $1")
            .bind(host.0)
            .execute(&market.sql)
            .await
            .expect("failed");
        assert!(costs(market, refused, Some(released(market).await), 10).await);
        assert_eq!(ended(market).await, [(10, false)]);
    })
    .await;
}

async fn bans(market: &Market, host: HostId) -> usize {
    market.store.bans_of_host(host).await.expect("bans").len()
}

#[tokio::test]
async fn one_bad_machine_bans_no_other_machine_and_no_renting() {
    open(async |market| {
        let (_, bad) = works(market).await;
        ban(market, bad, &[]).await;
        let (_, fresh) = works(market).await;
        assert_eq!((bans(market, bad).await, bans(market, fresh).await), (1, 0));
        assert_eq!(market.store.ban_of_miner(PLATFORM).await.expect("bans"), None);
        let own = host_of(market, 900, PLATFORM, &[]).await;
        assert_eq!(bans(market, own).await, 1, "what is no machine answers for its miner as ever");
    })
    .await;
}

#[tokio::test]
async fn a_platform_that_is_banned_for_a_host_of_its_own_rents_nothing_until_that_is_over() {
    open(async |market| {
        let own = host_of(market, 900, PLATFORM, &[]).await;
        ban(market, own, &[]).await;
        let found = market.store.ban_of_miner(PLATFORM).await.expect("bans").expect("one");
        assert!(found.host == own && found.left.is_some());
        let (_, rented) = works(market).await;
        assert_eq!(bans(market, rented).await, 0, "what is rented already goes on");
        assert_eq!(market.store.ban_of_miner("somebody").await.expect("bans"), None);
        market.store.host_retest(own).await.expect("the operator's word");
        assert_eq!(market.store.ban_of_miner(PLATFORM).await.expect("bans"), None);
    })
    .await;
}

#[tokio::test]
async fn a_machine_in_doubt_makes_no_other_machine_doubted() {
    open(async |market| {
        let (_, bad) = works(market).await;
        let (_, other) = works(market).await;
        let own = host_of(market, 900, PLATFORM, &[]).await;
        let challenge = draw(market, bad).await;
        market.store.challenge_decide(challenge, &failed(), &mistrusted()).await.expect("decide");
        sqlx::query("update hosts set doubt = 'probe' where host_id = $1 and doubt is null")
            .bind(bad.0)
            .execute(&market.sql)
            .await
            .expect("doubted");
        assert_eq!((is_in_doubt(market, other).await, is_in_doubt(market, own).await), (false, true));
    })
    .await;
}

#[tokio::test]
async fn a_cloud_is_listed_with_its_open_machines_and_when_they_were_looked_after() {
    open(async |market| {
        wanted(market).await;
        let list = async || market.store.cloud_list().await.expect("clouds");
        assert_eq!(
            list().await.iter().map(|cloud| (cloud.open, cloud.looked_at)).collect::<Vec<_>>(),
            [(1, None)]
        );
        market.store.cloud_looked("lambda").await.expect("looked");
        market.store.cloud_looked("verda").await.expect("looked");
        market.store.cloud_resume("lambda").await.expect("resumed");
        let clouds = list().await;
        let names: Vec<_> = clouds.iter().map(|cloud| (&*cloud.cloud, cloud.open)).collect();
        assert_eq!(names, [("lambda", 1), ("verda", 0)]);
        assert!(clouds[0].looked_at.is_some() && clouds[0].resumed_at.is_some());
        assert_eq!(clouds[1].resumed_at, None);
        let stop = async |why| market.store.cloud_stop("lambda", why).await.expect("written");
        assert!(stop(Some("it rests")).await && !stop(Some("it rests")).await);
        assert_eq!(list().await[0].stop.as_deref(), Some("it rests"));
        assert!(stop(None).await && list().await[0].stop.is_none());
    })
    .await;
}
