//! Quotes: capacity that is held at its price, for one job, until it expires.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, CustomerId, HostId, JobId, MicroUsd, MilliCpu, MilliGpu, Millis, QuoteId,
    fraction::{Division, Fraction, Slice},
    host::{Device, Inventory, ProvenDevice, Trust},
    job::{Isolation, JobRequest, JobState, Resources},
    lease::ChosenFor,
    rate::{Rate, Size},
    wish::{GpuRequest, TermWish},
};
use nave_store::{
    Asking, Grounds, HostPatch, Placement, QUOTES_MAX, QUOTES_RECENT_MAX, QuoteAnswer, QuoteFault,
    StoreError, SupplyHost,
};
use tokio::task::JoinSet;

use crate::market::{Market, RATE, device, hash, inventory, open, request};

const HOLD: Option<Millis> = Some(Millis(60_000));

async fn ask(
    market: &Market,
    customer: CustomerId,
    key: &str,
    hold: Option<Millis>,
) -> Result<QuoteId, StoreError> {
    ask_for(market, customer, key, &request(), hold).await
}

async fn ask_for(
    market: &Market,
    customer: CustomerId,
    key: &str,
    request: &JobRequest,
    hold: Option<Millis>,
) -> Result<QuoteId, StoreError> {
    let hash = hash(&serde_json::to_string(request).expect("serialise"));
    market.store.quote_ask(&Asking { customer, key, hash, request, hold }).await
}

/// What a planner would answer: this host, as of now.
async fn place(market: &Market, quote: QuoteId, host: HostId) -> Placement {
    let snapshot = market.store.snapshot().await.expect("snapshot");
    let asked = snapshot.quotes.iter().find(|asked| asked.quote == quote).expect("it waits for an answer");
    let supply = &snapshot.hosts[&host];
    Placement {
        job: JobId(quote.0),
        host,
        generation: supply.generation,
        size: asked.request.resources.size(),
        disk: asked.request.resources.disk,
        devices: Vec::new(),
        share: None,
        rate: supply.rate,
        run_max: asked.request.limits.run_ms,
        capped_by_spend: false,
        grounds: Grounds { reason: ChosenFor::Cheapest, ..Grounds::default() },
        gang: None,
    }
}

async fn answer(market: &Market, quote: QuoteId, placement: Placement) -> Result<(), StoreError> {
    market.store.quote_answer(quote, &QuoteAnswer::Place(Box::new(placement)), &[]).await
}

/// A quote that holds a place on a host.
pub async fn held(market: &Market, customer: CustomerId, host: HostId) -> QuoteId {
    let quote = ask(market, customer, &QuoteId(uuid::Uuid::now_v7()).to_string(), HOLD).await.expect("asked");
    let placement = place(market, quote, host).await;
    answer(market, quote, placement).await.expect("answered");
    quote
}

pub fn on(quote: QuoteId) -> JobRequest {
    JobRequest { quote: Some(quote), ..request() }
}

async fn supply(market: &Market, host: HostId) -> SupplyHost {
    market.store.snapshot().await.expect("snapshot").hosts[&host].clone()
}

async fn expire(market: &Market, quote: QuoteId) {
    expire_in(market, quote, -1).await;
}

async fn expire_in(market: &Market, quote: QuoteId, ms: i64) {
    sqlx::query("update quotes set expires_at_ms = now_ms() + $2 where quote_id = $1")
        .bind(quote.0)
        .bind(ms)
        .execute(&market.sql)
        .await
        .expect("expired");
}

fn fault<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> QuoteFault {
    match answer {
        Err(StoreError::Quote(fault)) => fault,
        other => panic!("not the fault of a quote: {other:?}"),
    }
}

#[tokio::test]
async fn a_quote_holds_its_place_until_it_expires_and_nothing_needs_to_happen_then() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let quote = held(market, customer, host).await;
        let busy = supply(market, host).await;
        let wanted = request().resources;
        assert_eq!(
            (busy.milli_cpu_used, busy.memory_used, busy.disk_used),
            (wanted.milli_cpu, wanted.memory, wanted.disk)
        );
        assert_eq!(busy.tenants, [(customer, false)]);
        assert!(market.store.hosts_occupied().await.expect("occupied").contains_key(&host));
        let row = market.store.quote_get(customer, quote).await.expect("the quote");
        assert!(row.expires_at.is_some() && !row.is_expired && row.job.is_none());
        assert_eq!(market.money(customer).await, (10_000_000, 0), "no money is held");

        expire(market, quote).await;
        let free = supply(market, host).await;
        assert_eq!((free.milli_cpu_used, free.tenants.len()), (MilliCpu::ZERO, 0));
        assert!(market.store.quote_get(customer, quote).await.expect("the quote").is_expired);
    })
    .await;
}

#[tokio::test]
async fn a_quote_that_is_given_back_holds_nothing_and_places_nothing() {
    open(async |market| {
        let [ada, eve] = [market.customer("ada").await, market.customer("eve").await];
        let host = market.host("alpha").await;
        let quote = held(market, ada, host).await;
        let foreign = market.store.quote_release(eve, quote).await;
        assert!(matches!(foreign, Err(StoreError::NotFound("quote"))), "{foreign:?}");
        for _ in 0..2 {
            market.store.quote_release(ada, quote).await.expect("given back");
            assert_eq!(supply(market, host).await.milli_cpu_used, MilliCpu::ZERO);
        }
        assert_eq!(fault(market.try_submit(ada, "given-back", &on(quote)).await), QuoteFault::Expired);

        let unanswered = ask(market, ada, "unanswered", HOLD).await.expect("asked");
        let placement = place(market, unanswered, host).await;
        market.store.quote_release(ada, unanswered).await.expect("given back");
        let late = answer(market, unanswered, placement).await;
        assert!(matches!(late, Err(StoreError::Stale("quote"))), "{late:?}");

        let used = held(market, ada, host).await;
        let job = market.submit(ada, &on(used)).await;
        assert_eq!(fault(market.store.quote_release(ada, used).await), QuoteFault::Used(job));
    })
    .await;
}

#[tokio::test]
async fn a_quote_for_a_whole_host_keeps_others_off_it() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let alone = JobRequest { isolation: Isolation::Host, ..request() };
        let quote = ask_for(market, customer, "alone", &alone, HOLD).await.expect("asked");
        let placement = place(market, quote, host).await;
        answer(market, quote, placement).await.expect("answered");
        assert_eq!(supply(market, host).await.tenants, [(customer, true)]);
        let job = market.submit(customer, &JobRequest { quote: Some(quote), ..alone }).await;
        assert_eq!(supply(market, host).await.tenants, [(customer, true)], "its job keeps them off, too");
        assert_eq!(market.job(customer, job).await.state, JobState::Placed);
    })
    .await;
}

#[tokio::test]
async fn a_job_on_a_quote_is_placed_at_once_at_its_price_whatever_the_host_costs_by_then() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let quote = held(market, customer, host).await;
        let rate = Rate { vcpu_hour: MicroUsd(99_000_000), ..RATE };
        let dearer = HostPatch { rate: Some(rate), ..HostPatch::default() };
        market.store.host_patch("hotkey of alpha", host, dearer).await.expect("another price");
        let other_command = JobRequest { argv: vec!["false".into()], retries: 3, ..on(quote) };
        let job = market.submit(customer, &other_command).await;
        assert_eq!(market.job(customer, job).await.state, JobState::Placed);
        let attempt = market.attempt(job).await;
        assert_eq!((attempt.host, attempt.rate, attempt.grounds.reason), (host, RATE, ChosenFor::Quoted));
        assert!(market.store.host_spec(host).await.expect("spec").orders.contains_key(&attempt.lease));
        let busy = supply(market, host).await;
        assert_eq!(
            busy.milli_cpu_used,
            request().resources.milli_cpu,
            "the lease has taken the quote's place"
        );
        assert_eq!(market.store.quote_get(customer, quote).await.expect("the quote").job, Some(job));
        assert_eq!(market.money(customer).await, (9_500_000, 500_000));
    })
    .await;
}

#[tokio::test]
async fn a_quote_is_used_once_even_by_many_at_once_and_the_same_key_finds_the_same_job() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let quote = held(market, customer, host).await;
        let mut tasks = JoinSet::new();
        for number in 0..8_u8 {
            let store = market.store.clone();
            tasks.spawn(async move {
                let request = on(quote);
                let key = format!("key {}", number / 2);
                let submission =
                    nave_store::Submission { customer, key: &key, hash: [0; 32], request: &request };
                store.job_submit(&submission).await
            });
        }
        let answers = tasks.join_all().await;
        let accepted: Vec<_> = answers.iter().flatten().collect();
        assert_eq!(accepted.iter().filter(|submitted| submitted.fresh).count(), 1, "{answers:?}");
        assert!((1..=2).contains(&accepted.len()), "{answers:?}");
        assert!(accepted.iter().all(|submitted| submitted.job == accepted[0].job));
        for refused in answers.into_iter().filter(Result::is_err) {
            assert_eq!(
                fault(refused),
                QuoteFault::Used(
                    market.store.quote_get(customer, quote).await.expect("the quote").job.expect("used")
                )
            );
        }
        assert_eq!(market.money(customer).await, (9_500_000, 500_000));
    })
    .await;
}

#[tokio::test]
async fn what_is_expired_empty_foreign_or_for_something_else_places_nothing() {
    open(async |market| {
        let [ada, eve] = [market.customer("ada").await, market.customer("eve").await];
        let host = market.host("alpha").await;
        let quote = held(market, ada, host).await;
        let foreign = market.try_submit(eve, "steal", &on(quote)).await;
        assert!(matches!(foreign, Err(StoreError::NotFound("quote"))), "{foreign:?}");
        let mut larger = on(quote);
        larger.resources.milli_cpu = MilliCpu(2_000);
        assert_eq!(
            fault(market.try_submit(ada, "larger", &larger).await),
            QuoteFault::Differs("resources".into())
        );
        let dearer = JobRequest { max_spend: MicroUsd(600_000), ..on(quote) };
        assert_eq!(
            fault(market.try_submit(ada, "dearer", &dearer).await),
            QuoteFault::Differs("max_spend".into())
        );
        expire(market, quote).await;
        assert_eq!(fault(market.try_submit(ada, "late", &on(quote)).await), QuoteFault::Expired);
        let open = ask(market, ada, "open", HOLD).await.expect("asked");
        assert_eq!(fault(market.try_submit(ada, "hasty", &on(open)).await), QuoteFault::Empty);
        assert_eq!(market.money(ada).await, (10_000_000, 0));
        let jobs = market.store.job_list(ada, None, None, 10).await.expect("jobs");
        assert_eq!(jobs.len(), 0, "and no job is left behind");
    })
    .await;
}

#[tokio::test]
async fn a_quote_on_a_host_that_takes_no_jobs_any_more_is_void() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let [paused, shrunk] = [market.host("paused").await, market.host("shrunk").await];
        let quotes = [held(market, customer, paused).await, held(market, customer, shrunk).await];
        let pause = HostPatch { paused: Some(true), ..HostPatch::default() };
        market.store.host_patch("hotkey of paused", paused, pause).await.expect("paused");
        market.settle(shrunk).await;
        let mut less = inventory();
        less.milli_cpu = MilliCpu(500);
        market.store.host_hear(shrunk, 1, 1_000, 0, &less).await.expect("hear");
        for (key, quote) in ["one", "two"].into_iter().zip(quotes) {
            assert_eq!(fault(market.try_submit(customer, key, &on(quote)).await), QuoteFault::Void, "{key}");
        }
        assert_eq!(market.money(customer).await, (10_000_000, 0));
    })
    .await;
}

#[tokio::test]
async fn a_quote_that_expires_while_its_job_waits_for_the_host_places_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let quote = held(market, customer, host).await;
        let mut busy = market.sql.begin().await.expect("begin");
        sqlx::query("select from hosts where host_id = $1 for update")
            .bind(host.0)
            .execute(&mut *busy)
            .await
            .expect("somebody has the host");
        expire_in(market, quote, 1_000).await;
        let until_over = async {
            let is_over = "select expires_at_ms <= now_ms() from quotes where quote_id = $1";
            while !sqlx::query_scalar::<_, bool>(is_over)
                .bind(quote.0)
                .fetch_one(&market.sql)
                .await
                .expect("looked")
            {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            busy.commit().await.expect("lets go of it");
        };
        let request = on(quote);
        let (late, ()) = tokio::join!(market.try_submit(customer, "late", &request), until_over);
        assert_eq!(fault(late), QuoteFault::Expired);
        assert_eq!(supply(market, host).await.milli_cpu_used, MilliCpu::ZERO);
        assert_eq!(market.money(customer).await, (10_000_000, 0));
    })
    .await;
}

#[tokio::test]
async fn a_quote_whose_devices_somebody_leases_is_void() {
    open(async |market| {
        let [ada, eve] = [market.customer("ada").await, market.customer("eve").await];
        let devices = vec![device("GPU-1"), device("GPU-2")];
        let host = market.host_with("alpha", RATE, &Inventory { devices, ..inventory() }).await;
        let quote = ask(market, ada, "quote", HOLD).await.expect("asked");
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let held = Placement { devices: of(&["GPU-1", "GPU-2"]), ..place(market, quote, host).await };
        answer(market, quote, held).await.expect("answered");
        expire(market, quote).await;
        let job = market.submit(eve, &request()).await;
        let placed = Placement { devices: of(&["GPU-2"]), ..market.placement(job, host).await };
        market.store.job_place(&placed).await.expect("a plan that saw it expire");
        expire_in(market, quote, 60_000).await;
        assert_eq!(fault(market.try_submit(ada, "late", &on(quote)).await), QuoteFault::Void);
        let mut tenants = supply(market, host).await.tenants;
        tenants.sort();
        assert_eq!(tenants, [(ada, false), (eve, false)], "its quote, and her lease");
    })
    .await;
}

const FRACTION: Fraction = Fraction { milli: MilliGpu(400), vram: Bytes(8 * Bytes::GIB) };

/// A request that a share or a slice of so much suffices for.
fn wants(share: i64) -> JobRequest {
    let share = u16::try_from(share).ok();
    let gpu = GpuRequest { vram: FRACTION.vram, share, ..GpuRequest::default() };
    let resources = Resources { gpu: Some(gpu), ..request().resources };
    JobRequest { resources, trust: Trust::ALL.into(), ..request() }
}

/// A host with a GPU that is shared and one that is cut.
async fn divided_host(market: &Market, name: &str) -> HostId {
    let slice =
        Slice { uuid: "MIG-1".into(), profile: "8gb".into(), milli: FRACTION.milli, vram: FRACTION.vram };
    let shared = Device { division: Division::Shares, ..device("GPU-1") };
    let cut = Device { division: Division::Slices(vec![slice]), ..device("GPU-2") };
    market.host_with(name, RATE, &Inventory { devices: vec![shared, cut], ..inventory() }).await
}

/// A quote that holds a share of a device, or a slice.
async fn held_part(market: &Market, customer: CustomerId, host: HostId, uuid: &str, share: bool) -> QuoteId {
    let key = QuoteId(uuid::Uuid::now_v7()).to_string();
    let quote = ask_for(market, customer, &key, &wants(FRACTION.milli.0), HOLD).await.expect("asked");
    let placement = place(market, quote, host).await;
    let size = Size { milli_gpu: FRACTION.milli, ..placement.size };
    let share = share.then_some(FRACTION);
    let part = Placement { devices: vec![uuid.into()], share, size, ..placement };
    answer(market, quote, part).await.expect("answered");
    quote
}

async fn use_it(market: &Market, customer: CustomerId, quote: QuoteId) -> Result<JobId, StoreError> {
    let wish = JobRequest { quote: Some(quote), ..wants(FRACTION.milli.0) };
    market.try_submit(customer, &quote.to_string(), &wish).await.map(|submitted| submitted.job)
}

/// What is taken of the device that is shared.
async fn taken(market: &Market, host: HostId) -> Option<(CustomerId, u16)> {
    let host = supply(market, host).await;
    host.shared.get("GPU-1").map(|taken| (taken.tenant, taken.count))
}

#[tokio::test]
async fn a_share_or_a_slice_that_a_quote_holds_is_taken_and_its_job_gets_and_pays_just_that() {
    open(async |market| {
        let ada = market.customer("ada").await;
        let host = divided_host(market, "alpha").await;
        let share = held_part(market, ada, host, "GPU-1", true).await;
        let slice = held_part(market, ada, host, "MIG-1", false).await;
        assert_eq!(taken(market, host).await, Some((ada, 1)));
        assert_eq!(supply(market, host).await.devices_used, ["MIG-1"]);
        for (quote, uuid) in [(share, "GPU-1"), (slice, "MIG-1")] {
            let job = use_it(market, ada, quote).await.expect("it is held");
            let attempt = market.attempt(job).await;
            assert_eq!((attempt.devices, attempt.size.milli_gpu), (vec![uuid.to_owned()], FRACTION.milli));
        }
        assert_eq!(taken(market, host).await, Some((ada, 1)), "once, and not for the quote and the job");
        let third = held_part(market, ada, host, "GPU-1", true).await;
        assert_eq!(taken(market, host).await, Some((ada, 2)));
        expire(market, third).await;
        assert_eq!(taken(market, host).await, Some((ada, 1)));
    })
    .await;
}

#[tokio::test]
async fn a_quote_for_a_share_is_void_where_it_would_be_oversold_or_beside_a_stranger() {
    open(async |market| {
        let eve = market.customer("eve").await;
        let small = Fraction { milli: MilliGpu(100), ..FRACTION };
        // What a plan has placed there that saw the quote expire: whether for the same customer, how much, how often.
        let cases = [
            (true, Some(FRACTION), 1, true),
            (true, Some(FRACTION), 2, false),
            (true, Some(small), 1, false),
            (true, None, 1, false),
            (false, Some(FRACTION), 1, false),
        ];
        for (is_own, share, count, stands) in cases {
            let name = format!("{is_own}-{count}-{}", share.map_or(0, |share| share.milli.0));
            let (ada, host) = (market.customer(&name).await, divided_host(market, &name).await);
            let customer = if is_own { ada } else { eve };
            let quote = held_part(market, ada, host, "GPU-1", true).await;
            expire(market, quote).await;
            for _ in 0..count {
                let job = market.submit(customer, &request()).await;
                let devices = vec!["GPU-1".into()];
                let placed = Placement { devices, share, ..market.placement(job, host).await };
                market.store.job_place(&placed).await.expect("placed");
            }
            expire_in(market, quote, 60_000).await;
            let used = use_it(market, ada, quote).await;
            assert_eq!(used.is_ok(), stands, "{share:?} x {count}: {used:?}");
            if !stands {
                assert_eq!(fault(used), QuoteFault::Void);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_quote_for_a_fraction_is_void_once_its_device_is_not_divided_so_or_too_small() {
    open(async |market| {
        let shared = |gib: i64| {
            let vram = Bytes(gib * Bytes::GIB);
            Device { division: Division::Shares, vram, ..device("GPU-1") }
        };
        let cut = |milli: i64, gib: i64| {
            let (milli, vram) = (MilliGpu(milli), Bytes(gib * Bytes::GIB));
            let slice = Slice { uuid: "MIG-1".into(), profile: "8gb".into(), milli, vram };
            Device { division: Division::Slices(vec![slice]), ..device("GPU-2") }
        };
        let cases = [
            ("GPU-1", vec![shared(79)], true),
            ("GPU-1", vec![device("GPU-1")], false),
            ("GPU-1", vec![shared(8)], false),
            ("GPU-1", vec![cut(400, 8)], false),
            ("MIG-1", vec![cut(400, 9)], true),
            ("MIG-1", vec![cut(400, 7)], false),
            ("MIG-1", vec![cut(399, 8)], false),
            ("MIG-1", vec![shared(80)], false),
        ];
        for (number, (uuid, devices, stands)) in cases.into_iter().enumerate() {
            let name = format!("case-{number}");
            let (ada, host) = (market.customer(&name).await, divided_host(market, &name).await);
            let quote = held_part(market, ada, host, uuid, uuid == "GPU-1").await;
            sqlx::query(
                "update hosts set inventory = jsonb_set(inventory, '{devices}', $2) where host_id = $1",
            )
            .bind(host.0)
            .bind(serde_json::to_value(&devices).expect("serialise"))
            .execute(&market.sql)
            .await
            .expect("another inventory");
            let used = use_it(market, ada, quote).await;
            assert_eq!(used.is_ok(), stands, "{uuid} on {devices:?}: {used:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_quote_for_a_whole_host_is_void_while_others_are_on_it_and_so_is_one_beside_such_a_job() {
    open(async |market| {
        let [ada, eve] = [market.customer("ada").await, market.customer("eve").await];
        let alone = JobRequest { isolation: Isolation::Host, ..request() };
        for (name, his, hers) in [("alpha", &alone, &request()), ("beta", &request(), &alone)] {
            let host = market.host(name).await;
            let quote = ask_for(market, ada, name, his, HOLD).await.expect("asked");
            let placement = place(market, quote, host).await;
            answer(market, quote, placement).await.expect("answered");
            expire(market, quote).await;
            let job = market.submit(eve, hers).await;
            market.place(job, host).await;
            expire_in(market, quote, 60_000).await;
            let on_it = JobRequest { quote: Some(quote), ..his.clone() };
            assert_eq!(fault(market.try_submit(ada, name, &on_it).await), QuoteFault::Void, "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn asking_again_is_asking_once() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let first = ask(market, customer, "key", HOLD).await.expect("asked");
        assert_eq!(ask(market, customer, "key", HOLD).await.expect("again"), first);
        let other = JobRequest { retries: 1, ..request() };
        let reused = ask_for(market, customer, "key", &other, HOLD).await;
        assert!(matches!(reused, Err(StoreError::KeyReused)), "{reused:?}");
        assert_eq!(market.store.snapshot().await.expect("snapshot").quotes.len(), 1);
        let eve = market.customer("eve").await;
        assert_ne!(ask(market, eve, "key", HOLD).await.expect("hers"), first);
    })
    .await;
}

#[tokio::test]
async fn a_customer_has_a_few_open_quotes_at_most_and_can_pay_for_each() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let dear = JobRequest { max_spend: MicroUsd(10_000_001), ..request() };
        let poor = ask_for(market, customer, "dear", &dear, HOLD).await;
        assert!(matches!(poor, Err(StoreError::BalanceTooLow)), "{poor:?}");
        let looking = ask_for(market, customer, "look", &dear, None).await.expect("looking is free");
        let nothing = QuoteAnswer::None("no_hosts".into(), "no host is ready".into());
        market.store.quote_answer(looking, &nothing, &[]).await.expect("answered");
        let mut quotes = Vec::new();
        for _ in 0..QUOTES_MAX {
            quotes.push(held(market, customer, host).await);
        }
        assert_eq!(fault(ask(market, customer, "more", HOLD).await), QuoteFault::TooMany);
        expire(market, quotes[0]).await;
        ask(market, customer, "more", HOLD).await.expect("room again");
        assert_eq!(fault(ask(market, customer, "yet more", HOLD).await), QuoteFault::TooMany);
    })
    .await;
}

#[tokio::test]
async fn who_only_looks_holds_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let quote = ask(market, customer, "look", None).await.expect("asked");
        let before = supply(market, host).await;
        let placement = place(market, quote, host).await;
        answer(market, quote, placement).await.expect("answered");
        assert_eq!(supply(market, host).await, before);
        let row = market.store.quote_get(customer, quote).await.expect("the quote");
        assert!(matches!(row.answer, Some(QuoteAnswer::Place(_))) && row.expires_at.is_none());
        assert_eq!(fault(market.try_submit(customer, "use", &on(quote)).await), QuoteFault::Empty);
    })
    .await;
}

#[tokio::test]
async fn a_quote_is_answered_once_and_only_as_the_host_was_seen() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let quotes = [ask(market, customer, "1", HOLD).await, ask(market, customer, "2", HOLD).await];
        let [first, second] = quotes.map(|quote| quote.expect("asked"));
        let placements = [place(market, first, host).await, place(market, second, host).await];
        let [one, stale] = placements;
        let job = market.submit(customer, &request()).await;
        let planned = market.placement(job, host).await;
        answer(market, first, one.clone()).await.expect("answered");
        let again = answer(market, first, one).await;
        assert!(matches!(again, Err(StoreError::Stale("quote"))), "{again:?}");
        let late = answer(market, second, stale).await;
        assert!(matches!(late, Err(StoreError::Stale("host"))), "{late:?}");
        let planned = market.store.job_place(&planned).await;
        assert!(
            matches!(planned, Err(StoreError::Stale("host"))),
            "a job that did not see the quote: {planned:?}"
        );
        assert_eq!(
            market.store.snapshot().await.expect("snapshot").quotes.len(),
            1,
            "the second still waits"
        );
    })
    .await;
}

#[tokio::test]
async fn a_plan_that_saw_a_quote_expire_is_stale_once_a_job_has_used_it() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let quote = held(market, customer, host).await;
        let waiting = market.submit(customer, &request()).await;
        let planned = market.placement(waiting, host).await;
        market.submit(customer, &on(quote)).await;
        let late = market.store.job_place(&planned).await;
        assert!(matches!(late, Err(StoreError::Stale("host"))), "{late:?}");
    })
    .await;
}

/// Gives a host another region, term, price and model of GPU.
async fn become_of(market: &Market, host: HostId, region: &str, term: &str, model: &str) {
    let change = "update hosts set region = $2, term = $3, vcpu_hour = 9000000,
            inventory = jsonb_set(inventory, '{devices,0,model}', to_jsonb($4::text)) where host_id = $1";
    let change = sqlx::query(change).bind(host.0).bind(region).bind(term).bind(model);
    change.execute(&market.sql).await.expect("changed");
}

#[tokio::test]
async fn a_quote_is_void_once_its_host_is_not_what_was_asked_for_but_for_its_price() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let devices = vec![device("GPU-1")];
        let host = market.host_with("alpha", RATE, &Inventory { devices, ..inventory() }).await;
        let gpu = GpuRequest { models: vec!["A100".into(), "test".into()], ..GpuRequest::default() };
        let resources = Resources { gpu: Some(gpu), ..request().resources };
        let wish = JobRequest {
            resources,
            region: "eu".parse().ok(),
            term: TermWish::OnDemand,
            trust: [Trust::Unrated].into(),
            max_price: Some(MicroUsd(3_600_000)),
            ..request()
        };
        let quote = ask_for(market, customer, "quote", &wish, HOLD).await.expect("asked");
        let held = Placement { devices: vec!["GPU-1".into()], ..place(market, quote, host).await };
        answer(market, quote, held).await.expect("answered");
        let on_it = JobRequest { quote: Some(quote), ..wish };
        let good = ("eu", "on_demand", "test");
        for (region, term, model) in
            [("us", good.1, good.2), (good.0, "spot", good.2), (good.0, good.1, "L4")]
        {
            become_of(market, host, region, term, model).await;
            let late = market.try_submit(customer, "job", &on_it).await;
            assert_eq!(fault(late), QuoteFault::Void, "{region} {term} {model}");
        }
        become_of(market, host, good.0, good.1, good.2).await;
        let job = market.submit(customer, &on_it).await;
        assert_eq!(market.attempt(job).await.rate, RATE, "it was there all the time, at its price");
    })
    .await;
}

#[tokio::test]
async fn a_quote_is_used_where_a_device_is_named_by_a_model_of_its_class() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let cases =
            [("GPU-1", "H100 80GB HBM3", true), ("GPU-2", "h100-sxm", true), ("GPU-3", "test", false)];
        let devices = cases.map(|(uuid, ..)| device(uuid)).into();
        let host = market.host_with("alpha", RATE, &Inventory { devices, ..inventory() }).await;
        let proven = ProvenDevice {
            models: vec!["NVIDIA H100 80GB HBM3".into()],
            ..ProvenDevice::of(&device("GPU-1"), Some("h100-sxm".into()))
        };
        let proven: BTreeMap<&str, ProvenDevice> = cases.map(|(uuid, ..)| (uuid, proven.clone())).into();
        sqlx::query("update hosts set proven = jsonb_set(proven, '{devices}', $2) where host_id = $1")
            .bind(host.0)
            .bind(serde_json::to_value(proven).expect("serialise"))
            .execute(&market.sql)
            .await
            .expect("proven");
        for (uuid, model, is_meant) in cases {
            let gpu = GpuRequest { models: vec![model.into()], ..GpuRequest::default() };
            let resources = Resources { gpu: Some(gpu), ..request().resources };
            let wish = JobRequest { resources, trust: Trust::ALL.into(), ..request() };
            let quote = ask_for(market, customer, model, &wish, HOLD).await.expect("asked");
            let held = Placement { devices: vec![uuid.into()], ..place(market, quote, host).await };
            answer(market, quote, held).await.expect("answered");
            let used = market.try_submit(customer, model, &JobRequest { quote: Some(quote), ..wish }).await;
            assert_eq!(used.is_ok(), is_meant, "{model}: {used:?}");
        }
    })
    .await;
}

/// Lets time pass since a quote was asked for, of which its id tells, too.
async fn age(market: &Market, quote: QuoteId, ms: u32) -> QuoteId {
    let older = QuoteId(uuid::Uuid::from_u128(quote.0.as_u128() - (u128::from(ms) << 80)));
    sqlx::query("update quotes set quote_id = $2, asked_at_ms = asked_at_ms - $3 where quote_id = $1")
        .bind(quote.0)
        .bind(older.0)
        .bind(i64::from(ms))
        .execute(&market.sql)
        .await
        .expect("aged");
    older
}

#[tokio::test]
async fn what_nobody_answers_lapses_and_what_is_old_is_forgotten_whoever_asks_next() {
    open(async |market| {
        let [ada, eve] = [market.customer("ada").await, market.customer("eve").await];
        let quote = ask(market, ada, "old", HOLD).await.expect("asked");
        let quote = age(market, quote, 30_001).await;
        assert!(market.store.quote_get(ada, quote).await.expect("the quote").is_lapsed);
        assert_eq!(market.store.snapshot().await.expect("snapshot").quotes, []);
        let host = market.host("alpha").await;
        let used = held(market, ada, host).await;
        market.submit(ada, &on(used)).await;
        let used = age(market, used, 86_430_000).await;
        let quote = age(market, quote, 86_400_000).await;
        let young = ask(market, ada, "young", None).await.expect("asked");
        let young = age(market, young, 86_000_000).await;
        ask(market, eve, "new", HOLD).await.expect("asked");
        for old in [used, quote] {
            let gone = market.store.quote_get(ada, old).await;
            assert!(matches!(gone, Err(StoreError::NotFound("quote"))), "{gone:?}");
        }
        market.store.quote_get(ada, young).await.expect("not old enough");
    })
    .await;
}

#[tokio::test]
async fn of_a_wish_only_what_decides_is_kept_and_a_minute_has_few_of_them() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let command = JobRequest { argv: vec!["x".repeat(200_000)], ..request() };
        let mut quotes = Vec::new();
        let nothing = QuoteAnswer::None("no_hosts".into(), "no host is ready".into());
        for number in 0..QUOTES_RECENT_MAX {
            let quote = ask_for(market, customer, &number.to_string(), &command, None).await.expect("asked");
            market.store.quote_answer(quote, &nothing, &[]).await.expect("answered");
            quotes.push(quote);
        }
        let sum = "select sum(octet_length(request::text)) from quotes";
        let kept: i64 = sqlx::query_scalar(sum).fetch_one(&market.sql).await.expect("a sum");
        assert!(kept < 1_000 * QUOTES_RECENT_MAX, "{kept} bytes");
        assert_eq!(fault(ask(market, customer, "more", None).await), QuoteFault::TooOften);
        ask_for(market, customer, "0", &command, None).await.expect("the same again is no other");
        age(market, quotes[0], 60_000).await;
        ask(market, customer, "more", None).await.expect("a minute later");
        ask(market, market.customer("eve").await, "hers", None).await.expect("others ask as they like");
    })
    .await;
}

#[tokio::test]
async fn what_a_quote_may_hold_is_bounded_by_what_its_customer_could_pay() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let of = |max_spend| JobRequest { max_spend: MicroUsd(max_spend), ..request() };
        ask_for(market, customer, "six", &of(6_000_000), HOLD).await.expect("six of ten");
        let more = ask_for(market, customer, "five", &of(5_000_000), HOLD).await;
        assert!(matches!(more, Err(StoreError::BalanceTooLow)), "each is covered, both are not: {more:?}");
        ask_for(market, customer, "look", &of(5_000_000), None).await.expect("looking is free");

        // A minute of the host's price is 60,000.
        for (max_spend, is_held) in [(59_999, false), (60_000, true)] {
            let quote = ask_for(market, customer, &max_spend.to_string(), &of(max_spend), HOLD).await;
            let quote = quote.expect("asked");
            let placement = place(market, quote, host).await;
            answer(market, quote, placement).await.expect("answered");
            let row = market.store.quote_get(customer, quote).await.expect("the quote");
            assert_eq!(row.expires_at.is_some(), is_held, "{row:?}");
            if let Some(QuoteAnswer::None(code, _)) = row.answer {
                assert_eq!(code, "max_spend_too_low");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_same_key_with_and_without_a_quote_is_accepted_once_and_the_two_wait_for_one_another_in_turn() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let quote = held(market, customer, host).await;
        let mut busy = market.sql.begin().await.expect("a transaction");
        let lock = sqlx::query("select from hosts where host_id = $1 for update").bind(host.0);
        lock.execute(&mut *busy).await.expect("locked");
        let (on_quote, without) = (on(quote), request());
        let one_after_the_other = async {
            until_some_wait(market, 1).await;
            let second = market.try_submit(customer, "key", &without);
            let free = async {
                until_some_wait(market, 2).await;
                busy.rollback().await.expect("free");
            };
            tokio::join!(second, free).0
        };
        let (first, second) =
            tokio::join!(market.try_submit(customer, "key", &on_quote), one_after_the_other);
        assert!(first.as_ref().is_ok_and(|first| first.fresh), "{first:?}");
        assert!(matches!(second, Err(StoreError::KeyReused)), "{second:?}");
    })
    .await;
}

/// Until so many transactions wait for locks.
async fn until_some_wait(market: &Market, count: i64) {
    let query = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    for _ in 0..600 {
        if sqlx::query_scalar::<_, i64>(query).fetch_one(&market.sql).await.expect("activity") == count {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{count} transactions should wait");
}
