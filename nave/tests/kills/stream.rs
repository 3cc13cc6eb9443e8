//! Jobs of several customers, and what must have become of each.

use nave_domain::{
    CustomerId, JobId, MicroUsd, Millis, QuoteId,
    job::{HOST_TRIES_MAX, JobRequest, JobState},
    lease::Outcome,
    ledger::PostingKind,
};
use nave_sdk::{
    client::{Client, LogsQuery},
    wire::{
        host::Stream,
        quote::{QuoteRequest, QuoteState},
        rest::Job,
    },
};
use serde_json::json;

use crate::plan::Rng;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Prints lines, leaves a result, exits with 0.
    Work { lines: u64 },
    /// Exits with 3, twice.
    Fail,
    /// Sleeps until its customer cancels it.
    Wait,
}

/// Where a job is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Any,
    /// A place that was quoted, where there is one.
    Quoted,
    /// A rented machine: no miner's host will do.
    Rented,
}

/// A job that was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub customer: usize,
    pub key: String,
    pub deed: Deed,
    pub job: JobId,
}

/// One customer.
pub struct Customer {
    pub id: CustomerId,
    pub client: Client,
}

/// Variable by which the processes of a job are found on this machine.
pub const TAG: &str = "NAVE_KILLS_JOB";

impl Deed {
    pub fn draw(rng: &mut Rng) -> Self {
        match rng.below(6) {
            0 => Self::Fail,
            1 => Self::Wait,
            _ => Self::Work { lines: 10 + rng.below(50) },
        }
    }
}

impl Place {
    pub fn draw(rng: &mut Rng) -> Self {
        match rng.below(12) {
            0 => Self::Rented,
            1..=3 => Self::Quoted,
            _ => Self::Any,
        }
    }
}

/// Asks for a job until it is accepted, and asks once more: it must be the same one.
pub async fn ask(customers: &[Customer], rng: &mut Rng, deed: Deed, place: Place) -> Asked {
    let customer = usize::try_from(rng.below(customers.len() as u64)).expect("small");
    let key = format!("k{:016x}", rng.next());
    let request = request(&key, deed, place);
    let client = &customers[customer].client;
    let quote = if place == Place::Quoted { held(client, &request, &key).await } else { None };
    let on_quote = JobRequest { quote, ..request.clone() };
    let (request, job) = match submit(client, &on_quote, &key).await {
        Ok(job) => (on_quote, job),
        Err(code) => {
            eprintln!("kills: {key} is not accepted on its quote: {code}");
            let job = submit(client, &request, &key).await.expect("accepted without a quote");
            (request, job)
        }
    };
    let again = submit(client, &request, &key).await.expect("accepted before");
    assert_eq!(job, again, "one key, one job");
    Asked { customer, key, deed, job }
}

/// A quote for a job, if there is a place.
async fn held(client: &Client, request: &JobRequest, key: &str) -> Option<QuoteId> {
    let wish = QuoteRequest { request: request.clone(), hold_ms: Millis(30_000), dry_run: false };
    let mut tries = 0;
    let quote = patiently(async || {
        match client.quote(&wish, &format!("{key}-{tries}")).await {
            // Nobody answered in time: that key has no other answer any more.
            Err(error) if error.code() == "quote_lapsed" => {
                tries += 1;
                Err(error)
            }
            answer => answer,
        }
    });
    let quote = quote.await;
    (quote.state == QuoteState::Held).then_some(quote.quote)
}

/// The job, or the code of what is the matter with its quote.
async fn submit(client: &Client, request: &JobRequest, key: &str) -> Result<JobId, String> {
    for _ in 0..60 {
        match client.submit(request, key).await {
            Ok(job) => return Ok(job.job),
            Err(error) if error.code().starts_with("quote_") => {
                return Err(error.to_string());
            }
            Err(error) => eprintln!("kills: submitting {key} again: {error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    panic!("{key} was not accepted in a minute");
}

fn request(key: &str, deed: Deed, place: Place) -> JobRequest {
    let work = "import os, sys, time\n\
        for i in range(int(sys.argv[1])): print(sys.argv[2], i, flush=True); time.sleep(.1)\n\
        open(os.environ['NAVE_OUT'] + '/key', 'w').write(sys.argv[2])";
    let argv: Vec<String> = match deed {
        Deed::Work { lines } => ["python3", "-c", work, &lines.to_string(), key].map(str::to_owned).to_vec(),
        Deed::Fail => ["sh", "-c", "sleep 0.3; exit 3"].map(str::to_owned).to_vec(),
        Deed::Wait => ["sleep", "600"].map(str::to_owned).to_vec(),
    };
    let request = json!({
        "argv": argv,
        "env": { TAG: key },
        "resources": { "milli_cpu": 100, "memory": 64 << 20, "disk": 32 << 20 },
        "retries": if deed == Deed::Fail { 1 } else { 0 },
        "trust": if place == Place::Rented { vec!["cloud"] } else { vec!["verified", "cloud"] },
        "max_spend": 100_000,
    });
    serde_json::from_value(request).expect("a request")
}

/// Whether attempts that ended through hosts used up all tries.
fn was_given_up(job: &Job) -> bool {
    let by_host = |outcome: &Outcome| outcome.is_hosts_fault();
    let tries = job.attempts.iter().filter_map(|attempt| attempt.outcome.as_ref()).filter(|o| by_host(o));
    job.state == JobState::Failed && u32::try_from(tries.count()).is_ok_and(|tries| tries >= HOST_TRIES_MAX)
}

/// Checks a final job against what was asked for.
pub async fn check(customers: &[Customer], asked: &Asked) -> &'static str {
    let Asked { customer, key, deed, job } = asked;
    let client = &customers[*customer].client;
    let document = patiently(async || client.job(*job).await).await;
    let numbers: Vec<u32> = document.attempts.iter().map(|attempt| attempt.attempt).collect();
    assert_eq!(numbers, (1..=u32::try_from(numbers.len()).expect("few")).collect::<Vec<_>>(), "{document:?}");
    check_receipt(client, &document, customers[*customer].id).await;
    if was_given_up(&document) {
        return "given up after six hosts' faults";
    }
    match deed {
        Deed::Work { lines } => {
            assert_eq!(document.state, JobState::Succeeded, "{document:?}");
            let accepted =
                document.attempts.iter().filter(|a| a.outcome == Some(Outcome::Exited { code: 0 }));
            assert_eq!(accepted.count(), 1, "accepted once: {document:?}");
            check_output(client, &document, key, *lines).await;
            assert!(document.has_result, "{document:?}");
            "succeeded"
        }
        Deed::Fail => {
            assert_eq!((document.state, document.exit_code), (JobState::Failed, Some(3)), "{document:?}");
            let failed = document.attempts.iter().filter(|a| a.outcome == Some(Outcome::Exited { code: 3 }));
            assert_eq!(failed.count(), 2, "tried twice: {document:?}");
            "failed with its own code"
        }
        Deed::Wait => {
            assert_eq!(document.state, JobState::Cancelled, "{document:?}");
            "cancelled"
        }
    }
}

/// The last attempt wrote every line once and in order.
async fn check_output(client: &Client, job: &Job, key: &str, lines: u64) {
    let query = LogsQuery::default();
    let logs = patiently(async || client.logs(job.job, &query).await).await;
    let last = job.attempts.len();
    let of_last =
        logs.lines.iter().filter(|line| line.attempt as usize == last && line.stream == Stream::Stdout);
    let text: String = of_last.map(|line| line.text.as_str()).collect();
    let wanted: String = (0..lines).map(|i| format!("{key} {i}\n")).collect();
    assert_eq!(text, wanted, "{}", job.job);
}

/// A receipt says what the ledger says, and its lines add up.
async fn check_receipt(client: &Client, job: &Job, customer: CustomerId) {
    let receipt = patiently(async || client.receipt(job.job).await).await;
    let sum = |kind: PostingKind| -> i64 {
        receipt.lines.iter().filter(|line| line.kind == kind).map(|line| line.amount.0).sum()
    };
    let charged = sum(PostingKind::Charge) - sum(PostingKind::Refund);
    assert_eq!(receipt.customer, customer);
    assert_eq!(receipt.held, MicroUsd(0), "{receipt:?}");
    assert_eq!(receipt.total.0, charged, "{receipt:?}");
    assert_eq!(sum(PostingKind::Hold), charged + sum(PostingKind::Release), "{receipt:?}");
    assert_eq!(job.charged, receipt.total, "{receipt:?}");
    let attempts: i64 = job.attempts.iter().map(|attempt| attempt.charged.0).sum();
    assert_eq!(attempts, receipt.total.0, "{receipt:?}");
}

/// Asks until there is an answer: a role may just have been killed.
pub async fn patiently<T, E: std::fmt::Display>(mut ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    for _ in 0..120 {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => eprintln!("kills: asking again: {error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    panic!("no answer in a minute");
}
