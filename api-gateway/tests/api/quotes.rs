//! Quotes: asked for here, answered by whoever schedules, used by a job.

use nave_domain::{
    HostId, JobId, MicroUsd, MilliGpu,
    host::{Term, Trust},
    job::JobState,
    lease::ChosenFor,
    rate::Size,
    region::Area,
};
use nave_sdk::wire::{
    quote::{Quote, QuoteState},
    rest::{Job, Receipt},
};
use nave_store::{BaselineRow, BaselineSource, Considered, Grounds, Placement, QuoteAnswer, Store};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::setup::{Market, RATE, fresh, read, refused};

fn ask(market: &Market, key: &str, body: &Value) -> RequestBuilder {
    market.post("/v1/quotes").header("Idempotency-Key", key).json(body)
}

fn wish() -> Value {
    json!({ "request": { "argv": ["true"], "max_spend": 1_000_000 } })
}

/// What a scheduler would do: answers every wish with this host, or with what one waits for.
fn scheduler(store: Store, host: Option<HostId>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let snapshot = store.snapshot().await.expect("a snapshot");
            for asked in snapshot.quotes {
                let answer = match host.and_then(|host| Some((host, snapshot.hosts.get(&host)?))) {
                    Some((host, supply)) => QuoteAnswer::Place(Box::new(Placement {
                        job: JobId(asked.quote.0),
                        host,
                        generation: supply.generation,
                        size: Size { milli_gpu: MilliGpu(1_000), ..asked.request.resources.size() },
                        disk: asked.request.resources.disk,
                        devices: Vec::new(),
                        share: None,
                        rate: supply.rate,
                        run_max: asked.request.limits.run_ms,
                        capped_by_spend: false,
                        grounds: Grounds {
                            reason: ChosenFor::Cheapest,
                            trust: Trust::Verified,
                            baseline: Some(MicroUsd(RATE.gpu_hour.0 + 500_000)),
                            term: Term::OnDemand,
                        },
                        gang: None,
                    })),
                    None => QuoteAnswer::None("no_hosts".into(), "no host is ready".into()),
                };
                let others = host.map(|host| Considered { host, hourly: MicroUsd(7), code: "busy".into() });
                drop(store.quote_answer(asked.quote, &answer, others.as_slice()).await);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
}

/// Ends with the test.
struct Scheduler(JoinHandle<()>);

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[tokio::test]
async fn a_quote_is_held_at_its_price_and_a_job_takes_its_place() {
    let market = Market::start().await;
    let host = market.host("alpha").await;
    let _scheduler = Scheduler(scheduler(market.store.clone(), Some(host.id)));
    let key = fresh("key");
    let quote: Quote = read(ask(&market, &key, &wish()).send().await.expect("an answer")).await;
    let place = quote.place.clone().expect("a place");
    assert_eq!((quote.state, place.host, place.host_name.as_str()), (QuoteState::Held, host.id, "alpha"));
    assert_eq!((place.rate, place.hourly, place.reason), (RATE, MicroUsd(38_000_000), ChosenFor::Cheapest));
    // Its GPU is cheaper than in clouds, and its core so dear that nothing is saved.
    let dearer = Some(MicroUsd(-35_500_000));
    assert_eq!((place.baseline, place.saving), (Some(MicroUsd(2_500_000)), dearer));
    assert_eq!(
        (quote.considered[0].host_name.as_str(), quote.considered[0].code.as_str()),
        ("alpha", "busy")
    );
    let again: Quote = read(ask(&market, &key, &wish()).send().await.expect("an answer")).await;
    assert_eq!(again, quote, "asking again is asking once");
    let other = json!({ "request": { "argv": ["false"] } });
    refused(ask(&market, &key, &other), 422, "idempotency_key_reused").await;

    let on_quote = json!({ "argv": ["echo"], "max_spend": 1_000_000, "quote": quote.quote });
    let job: Job = read(market.submission(&fresh("key"), &on_quote).send().await.expect("an answer")).await;
    assert_eq!((job.state, job.attempts[0].host), (JobState::Placed, host.id));
    assert_eq!((job.attempts[0].reason, job.attempts[0].saving), (ChosenFor::Quoted, dearer));
    let receipt: Receipt = market.fetch(&format!("/v1/jobs/{}/receipt", job.job)).await;
    assert_eq!(receipt.attempts[0].attempt.saving, dearer);
    let used: Quote = market.fetch(&format!("/v1/quotes/{}", quote.quote)).await;
    assert_eq!((used.state, used.job), (QuoteState::Used, Some(job.job)));
    refused(market.submission(&fresh("key"), &on_quote), 409, "quote_used").await;
    refused(market.post(&format!("/v1/quotes/{}/release", quote.quote)), 409, "quote_used").await;

    let unused: Quote = read(ask(&market, &fresh("key"), &wish()).send().await.expect("an answer")).await;
    let path = format!("/v1/quotes/{}/release", unused.quote);
    let released: Quote = read(market.post(&path).send().await.expect("an answer")).await;
    assert_eq!(released.state, QuoteState::Expired);
    market.assert_books_balance().await;
}

#[tokio::test]
async fn a_quote_that_does_not_fit_its_job_is_refused_with_what_differs() {
    let market = Market::start().await;
    let host = market.host("alpha").await;
    let _scheduler = Scheduler(scheduler(market.store.clone(), Some(host.id)));
    let quote: Quote = read(ask(&market, &fresh("key"), &wish()).send().await.expect("an answer")).await;
    let submit = |body: &Value| market.submission(&fresh("key"), body);
    let larger = json!({ "argv": ["true"], "max_spend": 1_000_000, "quote": quote.quote, "region": "eu" });
    let problem = refused(submit(&larger), 422, "quote_differs").await;
    assert!(problem.detail.contains("region"), "{problem:?}");
    let unknown = json!({ "argv": ["true"], "quote": "quote_00000000000000000000000000000001" });
    refused(submit(&unknown), 404, "quote_not_found").await;
    let gang = json!({ "argv": ["true"], "group": "g", "gang": 2, "quote": quote.quote });
    refused(submit(&gang), 422, "request_invalid").await;
    let (_, stranger) = market.customer("eve").await;
    let path = format!("/v1/quotes/{}", quote.quote);
    refused(market.with_token(stranger).get(&path), 404, "quote_not_found").await;
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_chosen_and_holds_nothing() {
    let market = Market::start().await;
    let host = market.host("alpha").await;
    let _scheduler = Scheduler(scheduler(market.store.clone(), Some(host.id)));
    let generation = market.store.host_generation(host.id).await.expect("generation");
    // More than the customer has: who only looks need not be able to pay.
    let dear = json!({ "request": { "argv": ["true"], "max_spend": 900_000_000 }, "dry_run": true });
    let quote: Quote = read(ask(&market, &fresh("key"), &dear).send().await.expect("an answer")).await;
    assert_eq!((quote.state, quote.place.expect("a place").host), (QuoteState::DryRun, host.id));
    assert_eq!(market.store.host_generation(host.id).await.expect("generation"), generation);
    let mut held = dear.clone();
    held["dry_run"] = json!(false);
    refused(ask(&market, &fresh("key"), &held), 402, "balance_too_low").await;
    let on_it = json!({ "argv": ["true"], "max_spend": 900_000_000, "quote": quote.quote });
    refused(market.submission(&fresh("key"), &on_it), 409, "quote_empty").await;
}

#[tokio::test]
async fn where_there_is_no_place_the_quote_says_why() {
    let market = Market::start().await;
    let _scheduler = Scheduler(scheduler(market.store.clone(), None));
    let quote: Quote = read(ask(&market, &fresh("key"), &wish()).send().await.expect("an answer")).await;
    assert_eq!((quote.state, quote.place), (QuoteState::Refused, None));
    assert_eq!(quote.reason.expect("a reason").code, "no_hosts");
}

#[tokio::test]
async fn a_wish_that_makes_no_sense_is_refused_with_its_field() {
    let market = Market::start().await;
    let gang = json!({ "request": { "argv": ["true"], "group": "g", "gang": 2 } });
    let long = json!({ "request": { "argv": ["true"] }, "hold_ms": 300_001 });
    let memory = json!({ "request": { "argv": ["true"], "resources": { "memory": 1 } } });
    for (body, field) in [(gang, "request.gang"), (long, "hold_ms"), (memory, "request.resources.memory")] {
        let problem = refused(ask(&market, &fresh("key"), &body), 422, "request_invalid").await;
        assert!(problem.detail.starts_with(field), "{problem:?}");
    }
    refused(
        ask(&market, &fresh("key"), &json!({ "request": { "argv": ["true"] }, "held": 1 })),
        422,
        "body_invalid",
    )
    .await;
    refused(market.post("/v1/quotes").json(&wish()), 400, "idempotency_key_invalid").await;
}

#[tokio::test]
async fn classes_are_shown_with_what_clouds_ask_where_who_says_so_and_how_much_is_leased() {
    let market = Market::start().await;
    let row = |area, gpu_hour, source| BaselineRow {
        class: "h200".into(),
        area,
        epoch: 1,
        gpu_hour: MicroUsd(gpu_hour),
        source,
        fetched_at: nave_domain::Timestamp(1),
    };
    let rows = [
        row(Some(Area::Europe), 3_100_000, BaselineSource::Quotes("lambda, verda".into())),
        row(None, 3_000_000, BaselineSource::List("a price page".into())),
    ];
    market.store.baselines_set(&rows).await.expect("baselines");
    market.store.epoch_open("test").await.expect("an epoch");
    let seen = nave_domain::class_use::ClassUse { devices: 4, leased_milli: 3_400 };
    market.store.class_use_add(&[("h200".to_owned(), seen)].into()).await.expect("seen");
    let classes: serde_json::Value = market.fetch("/v1/classes").await;
    let at = "1970-01-01T00:00:00.001Z";
    let h200 = json!({
        "class": "h200",
        "baselines": [
            { "region": null, "gpu_hour": 3_000_000, "listed": true, "source": "a price page", "fetched_at": at },
            { "region": "europe", "gpu_hour": 3_100_000, "listed": false, "source": "lambda, verda", "fetched_at": at },
        ],
        "utilisation": 850,
    });
    assert_eq!(classes, json!([h200]));
}
