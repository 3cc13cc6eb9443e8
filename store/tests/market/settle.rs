//! What an epoch is settled from stands still, and what comes of it happens once.

use std::collections::BTreeMap;

use nave_domain::{
    CustomerId, HostId, JobId, LeaseId, MicroUsd, Millis,
    epoch::EpochState,
    event::{Blame, ConfirmedBy, EventRuling},
    host::Term,
    ledger::PostingKind,
};
use nave_store::{
    EpochResult, HostPatch, LeaseCredit, LeaseEvidence, LeaseResult, MinerResult, Settlement, StoreError,
};
use serde_json::{Value, json};

use crate::market::{EXITED, Market, open, request};

/// What is not `null` in a document of parameters counts; the rest is what these tests need.
fn params(changed: Value) -> Value {
    let mut all = json!({"notice_epochs": 2, "probation_ms": 0, "collateral_ms": 0, "cooldown_ms": 0});
    for (name, value) in changed.as_object().expect("fields") {
        all[name] = value.clone();
    }
    all
}

pub async fn begin(market: &Market, changed: Value) {
    market.store.params_first(&params(changed)).await.expect("the first parameters");
    market.store.epoch_open("local").await.expect("an epoch");
}

/// Closes the open epoch and begins to settle it.
pub async fn close(market: &Market) -> Settlement {
    let epoch = market.store.epoch_open("local").await.expect("an epoch").epoch;
    market.store.epoch_close(epoch, "local").await.expect("close");
    market.store.settlement_begin(epoch).await.expect("begin")
}

/// A lease that has run for so long, in milliseconds, and has closed.
async fn leased(market: &Market, customer: CustomerId, host: HostId, used: i64) -> (JobId, LeaseId) {
    let (job, lease) = market.run(customer, host, &request()).await;
    market.use_up(host, lease, used).await;
    market.finish(host, lease, EXITED).await;
    (job, lease)
}

fn pay(carry: i64, collateral: i64, demoted_until_ms: i64) -> Value {
    json!({"carry": carry, "collateral": collateral, "demoted_until_ms": demoted_until_ms, "cash": 0, "weight": 0,
        "penalty_collateral": 0, "vesting": [], "days": []})
}

pub fn result() -> EpochResult {
    EpochResult {
        emission: MicroUsd(7),
        emission_source: "test".into(),
        emissions: Vec::new(),
        head: "ab".repeat(32),
        lines: 3,
        result: json!({}),
        weights: BTreeMap::from([("sink".to_owned(), u16::MAX)]),
        miners: Vec::new(),
        credits: Vec::new(),
    }
}

fn miner(hotkey: &str, pay: Value) -> MinerResult {
    let penalty_collateral = MicroUsd(pay["penalty_collateral"].as_i64().expect("money"));
    let cash = MicroUsd(pay["cash"].as_i64().expect("money"));
    MinerResult { hotkey: hotkey.into(), pay, cash, penalty_collateral, is_demoted: false }
}

fn lease_result(lease: &LeaseEvidence, credit: i64) -> LeaseResult {
    LeaseResult {
        lease: lease.lease,
        hotkey: lease.hotkey.clone(),
        breaches: 1,
        adherence_ppm: 900_000,
        used: MicroUsd(1),
        bid: MicroUsd::ZERO,
        credit: MicroUsd(credit),
        penalty: MicroUsd::ZERO,
    }
}

fn credit(lease: &LeaseEvidence, amount: i64) -> LeaseCredit {
    LeaseCredit { lease: lease.lease, job: lease.job, customer: lease.customer, amount: MicroUsd(amount) }
}

pub async fn decide_all(market: &Market, blame: Blame, confirmed_by: Option<ConfirmedBy>) {
    for event in market.store.events_pending(None, 100).await.expect("pending") {
        let ruling = EventRuling { blame, confirmed_by, lost: event.row.lost, why: "because" };
        market.store.event_decide(event.row.event, &ruling, "because", &[7; 64]).await.expect("decide");
    }
}

#[tokio::test]
async fn a_lease_is_settled_once_and_only_when_it_has_closed() {
    open(async |market| {
        begin(market, json!({})).await;
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (_, done) = leased(market, customer, host, 2_000).await;
        let (_, running) = market.run(customer, host, &request()).await;
        let mut settlement = close(market).await;
        let leases = settlement.leases(None).await.expect("leases");
        assert_eq!(leases.iter().map(|lease| lease.lease).collect::<Vec<_>>(), [done]);
        assert_eq!(leases[0].charged, MicroUsd(leases[0].used.0));
        settlement.leases_paid(&[lease_result(&leases[0], 0)]).await.expect("noted");
        settlement.finish(&result()).await.expect("settled");
        market.finish(host, running, EXITED).await;
        let mut settlement = close(market).await;
        let leases = settlement.leases(None).await.expect("leases");
        assert_eq!(leases.iter().map(|lease| lease.lease).collect::<Vec<_>>(), [running]);
        let again = settlement
            .leases_paid(&[lease_result(&LeaseEvidence { lease: done, ..leases[0].clone() }, 0)])
            .await;
        assert!(matches!(&again, Err(StoreError::Constraint(name)) if name == "lease_pay_pkey"), "{again:?}");
    })
    .await;
}

#[tokio::test]
async fn a_lease_waits_for_its_events_and_they_come_with_it() {
    open(async |market| {
        begin(market, json!({})).await;
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        market.use_up(host, lease, 5_000).await;
        market.store.lease_lost(host, lease).await.expect("lost");
        let mut settlement = close(market).await;
        assert_eq!(settlement.leases(None).await.expect("leases"), [], "its loss is undecided");
        assert_eq!(settlement.events(None).await.expect("events"), []);
        settlement.finish(&result()).await.expect("settled");
        decide_all(market, Blame::Host, Some(ConfirmedBy::Absence)).await;
        let mut settlement = close(market).await;
        let leases = settlement.leases(None).await.expect("leases");
        assert_eq!(
            (leases[0].lease, leases[0].used, leases[0].charged),
            (lease, Millis::ZERO, MicroUsd::ZERO)
        );
        assert_eq!(leases[0].outcome, "host_lost");
        let events = settlement.events(None).await.expect("events");
        assert_eq!(events.iter().map(|event| event.lease).collect::<Vec<_>>(), [Some(lease)]);
        assert_eq!((events[0].blame.as_str(), events[0].confirmed_by.as_deref()), ("host", Some("absence")));
    })
    .await;
}

#[tokio::test]
async fn what_is_read_twice_is_the_same_whatever_happens_meanwhile() {
    open(async |market| {
        begin(market, json!({})).await;
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        leased(market, customer, host, 2_000).await;
        let mut first = close(market).await;
        let seen = (first.leases(None).await.expect("leases"), first.miners().await.expect("miners"));
        drop(first);
        leased(market, customer, host, 3_000).await;
        market.store.related_set(customer, "hotkey of alpha", "a friend").await.expect("related");
        market.store.collateral_post("hotkey of alpha", None, MicroUsd(5), "one").await.expect("posted");
        market.host("beta").await;
        let mut again = market.store.settlement_begin(1).await.expect("begin again");
        assert_eq!(seen, (again.leases(None).await.expect("leases"), again.miners().await.expect("miners")));
        let both = market.store.epoch_close(1, "local").await;
        assert!(matches!(both, Err(StoreError::Stale("epoch"))), "{both:?}");
    })
    .await;
}

#[tokio::test]
async fn whoever_is_settled_is_settled_once_and_in_order() {
    open(async |market| {
        begin(market, json!({})).await;
        let first = close(market).await;
        drop(first);
        market.store.epoch_close(2, "local").await.expect("close");
        let early = market.store.settlement_begin(2).await.map(|_| ());
        assert!(matches!(early, Err(StoreError::Stale("epoch"))), "{early:?}");
        let first = market.store.settlement_begin(1).await.expect("begin");
        first.finish(&result()).await.expect("settled");
        let again = market.store.settlement_begin(1).await.map(|_| ());
        assert!(matches!(again, Err(StoreError::Stale("epoch"))), "{again:?}");
        let second = market.store.settlement_begin(2).await.expect("begin");
        assert_eq!(second.frame.head_before, Some("ab".repeat(32)));
        assert_eq!(second.frame.emissions, [MicroUsd(7)]);
        let row = market.store.epoch_get(1).await.expect("the epoch");
        assert_eq!((row.state, row.settled.expect("settled").lines), (EpochState::Settled, 3));
    })
    .await;
}

#[tokio::test]
async fn customers_get_credits_back_and_receipts_say_so() {
    open(async |market| {
        begin(market, json!({})).await;
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, _) = leased(market, customer, host, 2_000).await;
        let (before, _) = market.money(customer).await;
        let mut settlement = close(market).await;
        let lease = settlement.leases(None).await.expect("leases").remove(0);
        settlement.leases_paid(&[lease_result(&lease, 200)]).await.expect("noted");
        let mut paid = pay(0, 0, 0);
        paid["cash"] = 30.into();
        let miners = vec![miner("hotkey of alpha", paid)];
        let done = EpochResult { miners, credits: vec![credit(&lease, 200)], ..result() };
        settlement.finish(&done).await.expect("settled");
        assert_eq!(market.money(customer).await.0, before + 200);
        let lines = market.store.ledger_of_job(job).await.expect("lines");
        let credits: Vec<_> = lines.iter().filter(|line| line.kind == PostingKind::CreditForBreach).collect();
        assert_eq!(credits.iter().map(|line| line.amount.0).collect::<Vec<_>>(), [200]);
        let earned = async || market.store.earnings("hotkey of alpha", None, 10).await.expect("earnings");
        assert_eq!(earned().await, [], "nobody sees weights before they are revealed");
        for state in [EpochState::Settled, EpochState::Submitted] {
            market.store.epoch_advance(1, state, None).await.expect("moved on");
        }
        assert_eq!(earned().await[0].pay["cash"], 30);
        let lines = market.store.earnings_of_leases("hotkey of alpha", 1, None, 10).await.expect("lines");
        assert_eq!((lines[0].credit, lines[0].breaches), (MicroUsd(200), 1));
    })
    .await;
}

#[tokio::test]
async fn a_bundle_is_read_when_its_weights_are_shown_and_forgotten_when_it_is_old() {
    open(async |market| {
        begin(market, json!({})).await;
        let mut settlement = close(market).await;
        settlement.bundle_write(b"first").await.expect("a piece");
        settlement.bundle_write(b"second").await.expect("a piece");
        settlement.finish(&result()).await.expect("settled");
        let refused = |name| move |answer: &Result<_, StoreError>| matches!(answer, Err(StoreError::NotFound(what)) if *what == name);
        let early = market.store.bundle_open(1).await;
        assert!(refused("revealed bundle")(&early), "{early:?}");
        for from in [EpochState::Settled, EpochState::Submitted] {
            market.store.epoch_advance(1, from, None).await.expect("advance");
        }
        let row = market.store.bundle_open(1).await.expect("revealed");
        assert_eq!((row.pieces, row.bytes, row.head), (2, 11, "ab".repeat(32)));
        assert_eq!(market.store.bundle_piece(1, 1).await.expect("a piece"), Some(b"second".to_vec()));
        assert_eq!(market.store.bundle_piece(1, 2).await.expect("none"), None);
        assert_eq!(market.store.bundles_sweep().await.expect("sweep"), 0, "it is new");
        market.store.evidence_days_set(0).await.expect("set");
        assert_eq!(market.store.bundles_sweep().await.expect("sweep"), 1);
        let late = market.store.bundle_open(1).await;
        assert!(refused("kept bundle")(&late), "{late:?}");
        assert!(market.store.epoch_get(1).await.expect("the epoch").settled.is_some(), "its head stays");
    })
    .await;
}

#[tokio::test]
async fn parameters_hold_from_the_epoch_that_was_announced_and_not_before() {
    open(async |market| {
        begin(market, json!({"local_emission": 1})).await;
        market.store.params_first(&params(json!({"local_emission": 9}))).await.expect("there are some");
        let next = params(json!({"local_emission": 2, "notice_epochs": 0}));
        let soon = market.store.params_announce(&next, 2).await;
        assert!(
            matches!(&soon, Err(StoreError::Constraint(name)) if name == "parameters_notice"),
            "{soon:?}"
        );
        let row = market.store.params_announce(&next, 3).await.expect("announced");
        assert_eq!((row.version, row.effective_epoch), (2, 3));
        assert_eq!(row.body["effective_epoch"], 3);
        let before = market.store.params_announce(&next, 2).await;
        assert!(before.is_err(), "an earlier epoch than the last: {before:?}");
        let emission = async |epoch| {
            market.store.params_of(Some(epoch)).await.expect("parameters")["local_emission"].clone()
        };
        assert_eq!([emission(2).await, emission(3).await, emission(9).await], [json!(1), json!(2), json!(2)]);
        assert_eq!(market.store.params_list().await.expect("list").len(), 2);
        let changed = sqlx::query("update parameters set body = '{}'").execute(&market.sql).await;
        assert!(changed.is_err(), "what was announced stays");
    })
    .await;
}

#[tokio::test]
async fn collateral_is_paid_back_after_its_time_and_only_what_is_not_owed() {
    open(async |market| {
        begin(market, json!({})).await;
        market.host("alpha").await;
        let hotkey = "hotkey of alpha";
        let post =
            async |key| market.store.collateral_post(hotkey, None, MicroUsd(100), key).await.expect("posted");
        assert_eq!([post("one").await, post("one").await], [true, false]);
        let much = market.store.collateral_call(hotkey, MicroUsd(101)).await;
        assert!(matches!(much, Err(StoreError::BalanceTooLow)), "{much:?}");
        market.store.collateral_call(hotkey, MicroUsd(90)).await.expect("called");
        let settlement = close(market).await;
        drop(settlement);
        assert_eq!(market.store.collateral_pay().await.expect("pay"), 0, "an epoch is not settled");
        let mut settlement = market.store.settlement_begin(1).await.expect("begin");
        let row = settlement.miners().await.expect("miners").remove(0);
        assert_eq!((row.moved, row.verified_hosts), (MicroUsd(100), 1));
        let mut paid = pay(-30, 80, 0);
        paid["penalty_collateral"] = 20.into();
        let done = EpochResult { miners: vec![miner(hotkey, paid)], ..result() };
        settlement.finish(&done).await.expect("settled");
        assert_eq!(market.store.collateral(hotkey).await.expect("collateral").balance, MicroUsd(80));
        assert_eq!(market.store.collateral_pay().await.expect("pay"), 1);
        let left = market.store.collateral(hotkey).await.expect("collateral");
        assert_eq!((left.balance, left.called), (MicroUsd(30), vec![]), "30 are owed");
        let mut settlement = close(market).await;
        assert_eq!(settlement.miners().await.expect("miners")[0].moved, MicroUsd(-50));
    })
    .await;
}

#[tokio::test]
async fn a_customer_who_leaves_collateral_for_a_miner_counts_as_one_with_them() {
    open(async |market| {
        begin(market, json!({})).await;
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        market
            .store
            .collateral_post("hotkey of alpha", Some(customer), MicroUsd(100), "one")
            .await
            .expect("posted");
        leased(market, customer, host, 2_000).await;
        let bob = market.customer("bob").await;
        leased(market, bob, host, 2_000).await;
        let mut settlement = close(market).await;
        let related = |lease: &LeaseEvidence| (lease.customer, lease.related.is_some());
        let mut leases: Vec<_> = settlement.leases(None).await.expect("leases").iter().map(related).collect();
        leases.sort_unstable();
        assert_eq!(leases, [(customer, true), (bob, false)]);
        assert_eq!(market.store.related_list().await.expect("list").len(), 1);
        market.store.related_remove(customer, "hotkey of alpha").await.expect("removed");
    })
    .await;
}

/// Why the miner's only host is sold as spot, and as what the planner sees it.
async fn sold(market: &Market, host: HostId) -> (Option<String>, Term) {
    let offer = market.store.offers("hotkey of alpha").await.expect("offers").remove(0);
    let seen = market.store.snapshot().await.expect("a snapshot").hosts[&host].terms.term;
    (offer.spot_because, seen)
}

#[tokio::test]
async fn offers_on_demand_are_for_miners_who_are_known_and_back_them() {
    open(async |market| {
        let hour = 3_600_000;
        begin(market, json!({"probation_ms": hour, "collateral_ms": hour})).await;
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        assert_eq!(sold(market, host).await, (Some("probation".into()), Term::Spot));
        sqlx::query("update hosts set enrolled_at_ms = enrolled_at_ms - 3600000")
            .execute(&market.sql)
            .await
            .expect("old");
        assert_eq!(sold(market, host).await, (Some("collateral".into()), Term::Spot));
        // Eight virtual CPUs, each a micro-USD a millisecond.
        market
            .store
            .collateral_post("hotkey of alpha", None, MicroUsd(8 * hour), "one")
            .await
            .expect("posted");
        assert_eq!(sold(market, host).await, (None, Term::OnDemand));
        let job = market.submit(customer, &request()).await;
        let planned = market.placement(job, host).await;
        market.store.collateral_call("hotkey of alpha", MicroUsd(1)).await.expect("called");
        assert_eq!(sold(market, host).await, (Some("collateral".into()), Term::Spot));
        let placed = market.store.job_place(&planned).await;
        assert!(matches!(placed, Err(StoreError::Stale("host"))), "it was planned as on demand: {placed:?}");
        let spot = HostPatch { term: Some(Term::Spot), ..HostPatch::default() };
        market.store.host_patch("hotkey of alpha", host, spot).await.expect("patched");
        assert_eq!(sold(market, host).await, (None, Term::Spot));
    })
    .await;
}

#[tokio::test]
async fn a_miner_who_was_demoted_sells_as_spot_until_that_is_over() {
    open(async |market| {
        begin(market, json!({})).await;
        let host = market.host("alpha").await;
        let settle = async |until: i64| {
            let settlement = close(market).await;
            let miners = vec![miner("hotkey of alpha", pay(0, 0, until))];
            settlement.finish(&EpochResult { miners, ..result() }).await.expect("settled");
        };
        settle(i64::MAX).await;
        assert_eq!(sold(market, host).await, (Some("demoted".into()), Term::Spot));
        settle(1).await;
        assert_eq!(sold(market, host).await, (None, Term::OnDemand));
    })
    .await;
}

#[tokio::test]
async fn a_settlement_and_a_charge_of_the_same_job_do_not_wait_for_each_other_in_a_circle() {
    open(async |market| {
        begin(market, json!({})).await;
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, _) = leased(market, customer, host, 2_000).await;
        let mut settlement = close(market).await;
        let lease = settlement.leases(None).await.expect("leases").remove(0);
        settlement.leases_paid(&[lease_result(&lease, 200)]).await.expect("noted");
        // Whoever charges has the job first, and its customer's money then.
        let mut charge = market.sql.begin().await.expect("begin");
        let lock = sqlx::query("select from jobs where job_id = $1 for update").bind(job.0);
        lock.execute(&mut *charge).await.expect("the job");
        let done = EpochResult { credits: vec![credit(&lease, 200)], ..result() };
        let settling = tokio::spawn(async move { settlement.finish(&done).await });
        market.blocked().await;
        let lock =
            sqlx::query("select from customers where customer_id = $1 for no key update").bind(customer.0);
        lock.execute(&mut *charge).await.expect("who waits for the job has not its customer's money");
        charge.commit().await.expect("commit");
        settling.await.expect("it ends").expect("settled");
    })
    .await;
}
