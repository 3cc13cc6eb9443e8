//! `nave run`: submit, stay with the job, exit with its code.

use std::{collections::BTreeMap, env, io, path::PathBuf, time::Duration};

use nave_domain::{
    JobId, Millis, QuoteId,
    job::{JobRequest, JobState, Limits, Resources},
    lease::Outcome,
};
use nave_sdk::{
    client::{Client, Error, LogEvent, LogsQuery},
    wire::{
        host::Stream,
        rest::{Job, LogLine},
    },
};
use serde::Serialize;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Context,
    args::{JobArgs, Run},
    failure::{Failure, exit},
    logs::lost,
    output::{self, say},
    progress::Progress,
    quote, replicas, result,
    table::clean,
};

/// Pause between two looks at a job that waits or starts.
const LOOK_EVERY: Duration = Duration::from_millis(700);
/// Pause between two looks at a job that runs; its log tells more.
const LOOK_WHILE_RUNNING: Duration = Duration::from_secs(5);
/// Pieces of output that wait to be printed; more wait at the other end.
const EVENTS_MAX: usize = 64;

/// What `--json` prints: the job with one more field.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    job: Job,
    logs: Vec<LogLine>,
}

/// Submits a job and stays with it.
pub async fn run(cx: &Context, run: Run) -> Result<u8, Failure> {
    let client = cx.patient_client()?;
    let request = match run.quote {
        Some(quote) => quoted(&client, quote, &run).await?,
        None => request(&run.job, run.argv.clone(), |name| env::var(name).ok())?,
    };
    if run.dry_run {
        return quote::dry_run(cx, request, run.idempotency_key).await;
    }
    if let Some(count) = run.replicas {
        return replicas::run(cx, &run, request, count).await;
    }
    let key = run.idempotency_key.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
    let job = submit(&client, &request, &key).await?;
    if run.detach {
        if cx.global.json {
            output::print_json(&job)?;
        } else {
            output::print(&format!("{}\n", job.job))?;
        }
        return Ok(0);
    }
    let mut attendant = Attendant::new(client.clone(), job.job, cx.global.json);
    attendant.look(&job);
    let job = attendant.stay().await?;
    finish(&client, run.out, Report { job, logs: attendant.logs }, cx.global.json).await
}

/// Submits a job, unless Ctrl-C comes first.
///
/// # Errors
/// [`Failure`] when it was not accepted, or when nobody knows.
pub async fn submit(client: &Client, request: &JobRequest, key: &str) -> Result<Job, Failure> {
    let attempted = "submit the job";
    tokio::select! {
        job = client.submit(request, key) => job.map_err(Failure::when(attempted)),
        _ = tokio::signal::ctrl_c() => {
            let advice = format!("see `nave ps`; the same command with --idempotency-key {key} finds the job");
            let failure = Failure::local(attempted, "interrupted; it may have been accepted", &advice);
            Err(failure.named("interrupted").exiting(exit::UNFINISHED))
        }
    }
}

/// The request that the options describe.
pub fn request(
    job: &JobArgs,
    argv: Vec<String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<JobRequest, Failure> {
    let wishes = &job.wishes;
    let gpu = wishes.gpu_request().map_err(|error| usage(&error))?;
    let mut request = JobRequest {
        image: job.image.clone(),
        env: variables(&job.env, variable)?,
        resources: Resources { gpu, milli_cpu: job.cpu, memory: job.memory, disk: job.disk },
        egress: job.egress,
        group: job.group.clone(),
        gang: job.gang,
        isolation: wishes.isolation.unwrap_or_default(),
        region: wishes.region.clone(),
        term: wishes.term.unwrap_or_default(),
        max_price: wishes.max_price,
        expected_ms: job.expect,
        limits: Limits { queue_ms: job.queue_limit, start_ms: job.start_limit, run_ms: job.run_limit },
        retries: job.retries,
        max_spend: job.max_spend,
        ..JobRequest::of(argv)
    };
    if !wishes.trust.is_empty() {
        request.trust = wishes.trust.iter().copied().collect();
    }
    request.check().map_err(|error| usage(&error.to_string()))?;
    Ok(request)
}

/// The request of a quote with another command.
async fn quoted(client: &Client, quote: QuoteId, run: &Run) -> Result<JobRequest, Failure> {
    let quoted = client.quoted(quote).await.map_err(Failure::when(&format!("look at {quote}")))?.request;
    Ok(JobRequest {
        image: run.job.image.clone().or(quoted.image),
        argv: run.argv.clone(),
        env: variables(&run.job.env, |name| env::var(name).ok())?,
        retries: run.job.retries,
        quote: Some(quote),
        ..quoted
    })
}

fn variables(
    given: &[String],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, Failure> {
    given
        .iter()
        .map(|text| match text.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => variable(text)
                .map(|value| (text.clone(), value))
                .ok_or_else(|| usage(&format!("-e {text} names a variable that is not set here"))),
        })
        .collect()
}

/// The command line makes no sense.
pub fn usage(detail: &str) -> Failure {
    Failure::local("describe the job", detail, "see `nave run --help`")
        .named("bad_usage")
        .exiting(exit::USAGE)
}

/// What happens while a job goes on.
enum Event {
    Log(Result<LogEvent, Error>),
    Look(Box<Job>),
    Interrupt,
    NotCancelled(Error),
}

/// Stays with one job: prints its output, tells its progress, cancels it on request.
struct Attendant {
    client: Client,
    job: JobId,
    quiet: bool,
    watched: bool,
    progress: Progress,
    logs: Vec<LogLine>,
    cancelled: bool,
}

impl Attendant {
    fn new(client: Client, job: JobId, quiet: bool) -> Self {
        let (progress, logs) = (Progress::default(), Vec::new());
        Self { client, job, quiet, watched: output::is_watched(), progress, logs, cancelled: false }
    }

    /// Returns the job when it is final.
    async fn stay(&mut self) -> Result<Job, Failure> {
        let (tell, mut events) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(follow(self.client.follow(self.job, LogsQuery::default()), tell.clone()));
        tokio::spawn(look_regularly(self.client.clone(), self.job, tell.clone()));
        tokio::spawn(interrupts(self.job, tell.clone()));
        while let Some(event) = events.recv().await {
            match event {
                Event::Log(Ok(LogEvent::Line(line))) => self.line(line, &tell).await,
                Event::Log(Ok(LogEvent::End(job))) => {
                    self.look(&job);
                    return Ok(*job);
                }
                Event::Log(Err(error)) => return Err(self.left(&error)),
                Event::Look(job) => self.look(&job),
                Event::Interrupt => self.cancel("interrupted", &tell),
                Event::NotCancelled(error) => {
                    say(&clean(&format!("could not cancel {}: {}", self.job, error.explain())));
                }
            }
        }
        Err(Failure::local(&self.attempted(), "its log ended early", "nave ps").exiting(exit::UNFINISHED))
    }

    fn attempted(&self) -> String {
        format!("stay with {}", self.job)
    }

    fn left(&self, error: &Error) -> Failure {
        let mut failure = lost(&self.attempted(), error);
        failure.problem.suggestion = format!("the job may go on: nave logs {} --follow", self.job);
        failure
    }

    fn look(&mut self, job: &Job) {
        for remark in self.progress.see(job) {
            if remark.lasting || self.watched {
                say(&remark.text);
            }
        }
    }

    async fn line(&mut self, line: LogLine, tell: &mpsc::Sender<Event>) {
        // The first output of a further attempt may come before the next look.
        if usize::try_from(line.attempt).unwrap_or(0) > self.progress.attempts()
            && let Ok(job) = self.client.job(self.job).await
        {
            self.look(&job);
        }
        if self.quiet {
            self.logs.push(line);
            return;
        }
        match line.stream {
            Stream::Stderr => output::write_err(&line.text),
            Stream::Stdout => match output::write_out(&line.text) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.cancel("nobody reads the output any more", tell);
                }
                Err(error) => self.cancel(&format!("the output cannot be written ({error})"), tell),
            },
        }
    }

    fn cancel(&mut self, why: &str, tell: &mpsc::Sender<Event>) {
        if std::mem::replace(&mut self.cancelled, true) {
            return;
        }
        say(&format!("{why}: cancelling {}; Ctrl-C leaves without waiting for its end", self.job));
        let (client, job, tell) = (self.client.clone(), self.job, tell.clone());
        tokio::spawn(async move {
            if let Err(error) = client.cancel(job).await {
                let _ = tell.send(Event::NotCancelled(error)).await;
            }
        });
    }
}

async fn follow(mut log: nave_sdk::client::Follow, tell: mpsc::Sender<Event>) {
    loop {
        let event = match log.next().await {
            Ok(Some(event)) => Ok(event),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let failed = event.is_err();
        if tell.send(Event::Log(event)).await.is_err() || failed {
            return;
        }
    }
}

async fn look_regularly(client: Client, job: JobId, tell: mpsc::Sender<Event>) {
    let mut pause = LOOK_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        // Whether the API is there is the log's business; a missed look is no loss.
        let Ok(job) = client.job(job).await else { continue };
        pause = if job.state == JobState::Running { LOOK_WHILE_RUNNING } else { LOOK_EVERY };
        let is_final = job.state.is_final();
        if tell.send(Event::Look(Box::new(job))).await.is_err() || is_final {
            return;
        }
    }
}

/// The first Ctrl-C is passed on; the second ends the program even where a
/// blocked stdout keeps everything else waiting.
async fn interrupts(job: JobId, tell: mpsc::Sender<Event>) {
    if tokio::signal::ctrl_c().await.is_err() {
        return;
    }
    // Nobody takes it once the job is final: what still goes on may be left at once.
    if tell.send(Event::Interrupt).await.is_ok() && tokio::signal::ctrl_c().await.is_err() {
        return;
    }
    say(&format!("left {job} before everything was done"));
    std::process::exit(i32::from(exit::UNFINISHED));
}

async fn finish(client: &Client, out: Option<PathBuf>, report: Report, json: bool) -> Result<u8, Failure> {
    let job = &report.job;
    let fetched = match out.filter(|_| job.has_result) {
        Some(dir) => result::fetch_into(client, job.job, &dir).await.map(|_| ()),
        None => Ok(()),
    };
    if !json {
        if job.result_truncated {
            say(result::TRUNCATED);
        }
        say(&last_line(job));
    }
    fetched?;
    if json {
        output::print_json(&report)?;
    }
    Ok(exit_code(job))
}

/// One line on how it ended, where, how long it ran and what it cost.
fn last_line(job: &Job) -> String {
    let used = job.attempts.iter().fold(0_i64, |sum, attempt| sum.saturating_add(attempt.used_ms.0));
    let host = job.attempts.last().map_or_else(|| "no host".to_owned(), |attempt| clean(&attempt.host_name));
    let how = match (job.state, job.exit_code, &job.reason) {
        (JobState::Succeeded, ..) => "succeeded".to_owned(),
        (state, _, Some(reason)) => format!("{} ({})", state.as_str(), clean(&reason.message)),
        (state, Some(code), None) => format!("{} (exit code {code})", state.as_str()),
        (state, None, None) => state.as_str().to_owned(),
    };
    format!("{how}; cost {} for {} on {host}; nave receipt {}", job.charged, Millis(used), job.job)
}

/// What `nave run` exits with for `job`.
#[must_use]
pub fn exit_code(job: &Job) -> u8 {
    match job.state {
        JobState::Succeeded => 0,
        JobState::Cancelled => exit::CANCELLED,
        JobState::Failed if hit_spend_cap(job) => exit::SPEND_CAP,
        JobState::Failed => job.exit_code.map_or(exit::FAILED, own_code),
        JobState::Queued | JobState::Placed | JobState::Running | JobState::Cancelling => exit::UNFINISHED,
    }
}

fn hit_spend_cap(job: &Job) -> bool {
    let last = job.attempts.last().and_then(|attempt| attempt.outcome.as_ref());
    last == Some(&Outcome::SpendCap) || job.reason.as_ref().is_some_and(|reason| reason.code == "spend_cap")
}

/// A job's exit code as this process can return it; a failure is never 0.
fn own_code(code: i32) -> u8 {
    u8::try_from(code & 0xff).ok().filter(|code| *code != 0).unwrap_or(exit::FAILED)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use nave_domain::{
        Bytes, MicroUsd,
        host::Trust,
        job::{Isolation, TermWish},
    };
    use nave_sdk::wire::rest::Reason;

    use super::{
        super::{
            args::{Cli, Command},
            golden,
        },
        *,
    };

    fn options(line: &str) -> Run {
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("a valid line");
        let Command::Run(run) = cli.command else { panic!("another command") };
        *run
    }

    fn asked(run: &Run) -> Result<JobRequest, Failure> {
        request(&run.job, run.argv.clone(), |_| None)
    }

    fn ended(state: JobState, exit_code: Option<i32>, outcome: Option<Outcome>) -> Job {
        let mut job = golden::jobs().remove(0);
        (job.state, job.exit_code, job.reason) = (state, exit_code, None);
        job.attempts[0].outcome = outcome;
        job
    }

    #[test]
    fn the_shortest_run_is_the_smallest_request() {
        let smallest: JobRequest = serde_json::from_str(r#"{"argv":["true"]}"#).expect("a request");
        assert_eq!(asked(&options("nave run -- true")), Ok(smallest));
    }

    #[test]
    fn what_is_asked_of_a_place_stands_in_the_request() {
        let line = "nave run --vram 8GiB --gpu H100:2 --region eu --term spot --trust unrated --isolation host \
                    --max-price 2.50 --expect 10m --group g --gang 4 -- true";
        let request = asked(&options(line)).expect("valid");
        let gpu = request.resources.gpu.expect("GPUs");
        assert_eq!((gpu.count, gpu.vram, gpu.models), (2, Bytes(8 * Bytes::GIB), vec!["H100".to_owned()]));
        assert_eq!(request.region.map(|region| region.to_string()).as_deref(), Some("eu"));
        assert_eq!((request.term, request.isolation), (TermWish::Spot, Isolation::Host));
        assert_eq!(request.trust, [Trust::Unrated].into());
        assert_eq!(
            (request.max_price, request.expected_ms),
            (Some(MicroUsd(2_500_000)), Some(Millis(600_000)))
        );
        assert_eq!(request.gang, Some(4));
    }

    #[test]
    fn a_variable_without_a_value_takes_the_one_that_is_set_here() {
        let run = options("nave run -e A=1=2 -e B -- true");
        let env = request(&run.job, run.argv.clone(), |_| Some("here".into())).expect("valid").env;
        assert_eq!(env, BTreeMap::from([("A".into(), "1=2".into()), ("B".into(), "here".into())]));
        assert_eq!(asked(&run).expect_err("B is not set").code, exit::USAGE);
    }

    #[test]
    fn what_no_host_could_run_is_wrong_usage() {
        let failure = asked(&options("nave run --memory 1 -- true")).expect_err("too small");
        assert_eq!((failure.code, failure.problem.code.as_str()), (exit::USAGE, "bad_usage"));
    }

    #[test]
    fn a_job_that_ran_gives_its_own_exit_code() {
        let exited = |code| Some(Outcome::Exited { code });
        assert_eq!(exit_code(&ended(JobState::Succeeded, Some(0), exited(0))), 0);
        assert_eq!(exit_code(&ended(JobState::Failed, Some(3), exited(3))), 3);
        assert_eq!(exit_code(&ended(JobState::Failed, Some(137), Some(Outcome::OutOfMemory))), 137);
    }

    #[test]
    fn a_failure_is_never_reported_as_success() {
        for code in [None, Some(0), Some(256)] {
            assert_eq!(exit_code(&ended(JobState::Failed, code, None)), exit::FAILED, "{code:?}");
        }
    }

    #[test]
    fn other_ends_have_codes_of_their_own() {
        assert_eq!(exit_code(&ended(JobState::Failed, None, Some(Outcome::RunTimeout))), exit::FAILED);
        assert_eq!(exit_code(&ended(JobState::Failed, None, Some(Outcome::SpendCap))), exit::SPEND_CAP);
        assert_eq!(exit_code(&ended(JobState::Cancelled, None, Some(Outcome::Cancelled))), exit::CANCELLED);
        assert_eq!(exit_code(&ended(JobState::Running, None, None)), exit::UNFINISHED);
    }

    #[test]
    fn the_last_line_says_how_it_ended_what_it_cost_and_where_to_read_more() {
        let mut job = ended(JobState::Failed, None, Some(Outcome::RunTimeout));
        job.reason = Some(Reason { code: "run_timeout".into(), message: "it ran into its run limit".into() });
        let line = last_line(&job);
        assert_eq!(
            line,
            "failed (it ran into its run limit); cost $0.000123 for 3.100 s on local-1; \
             nave receipt job_00000000000000000000000000000001"
        );
    }
}
