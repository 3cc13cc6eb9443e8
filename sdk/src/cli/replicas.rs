//! `nave run --replicas`: the same job with several miners, and what came back compared.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    time::Duration,
};

use nave_domain::{JobId, job::JobRequest};
use nave_sdk::{
    client::{Client, LogsQuery},
    wire::{
        host::Stream,
        rest::Job,
        sign::{Sha256, sha256},
    },
};
use serde::Serialize;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    Context,
    args::Run,
    failure::{Failure, exit},
    logs::lost,
    output::{self, say},
    progress::Progress,
    result,
    run::{exit_code, submit},
    table::clean,
};

/// Pause between two looks at a job.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What one replica came back with.
#[derive(Debug, Clone, Serialize)]
struct Replica {
    job: Job,
    #[serde(skip)]
    stdout: String,
    /// Of what it wrote to stdout, as text.
    stdout_sha256: Sha256,
    /// Of the archive of its result files, which is the same for the same files.
    result_sha256: Option<Sha256>,
    answer: Answer,
}

/// How a replica compares with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// It says what most say.
    Agrees,
    /// It says something else, or there is nothing that most say.
    Differs,
    /// It did not end with an exit code.
    None,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether all came back with the same; none where fewer than two came back with anything.
    agree: Option<bool>,
    /// What all have written to stdout, where they agree.
    stdout: Option<String>,
    replicas: Vec<Replica>,
}

/// Runs the same job with as many miners and compares what comes back.
pub async fn run(cx: &Context, run: &Run, request: JobRequest, count: u8) -> Result<u8, Failure> {
    let client = cx.patient_client()?;
    let key = run.idempotency_key.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
    let request = JobRequest { apart: Some(number(&key)), ..request };
    let jobs = submit_all(&client, &request, &key, count).await?;
    let mut replicas = Vec::new();
    for job in await_all(&client, jobs).await? {
        replicas.push(fetch(&client, job).await?);
    }
    let agree = compare(&mut replicas);
    if let Some(out) = run.out.as_ref().filter(|_| agree == Some(true) && replicas[0].job.has_result) {
        result::fetch_into(&client, replicas[0].job.job, out).await?;
    }
    let code = code(agree, &replicas);
    let stdout = (agree == Some(true)).then(|| replicas[0].stdout.clone());
    let report = Report { agree, stdout, replicas };
    if cx.global.json {
        output::print_json(&report)?
    } else {
        tell(&report)?
    }
    Ok(code)
}

/// The number of the jobs that are kept apart: the same for the same key, so that a repeated request is the same.
fn number(key: &str) -> Uuid {
    let Sha256(hash) = sha256(format!("nave replicas {key}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Uuid::from_bytes(bytes)
}

/// All, or none.
async fn submit_all(
    client: &Client,
    request: &JobRequest,
    key: &str,
    count: u8,
) -> Result<Vec<Job>, Failure> {
    let mut jobs: Vec<Job> = Vec::new();
    for number in 1..=count {
        match submit(client, request, &format!("{key}-{number}")).await {
            Ok(job) => jobs.push(job),
            Err(failure) => {
                cancel(client, jobs.iter().map(|job| job.job)).await;
                return Err(failure);
            }
        }
    }
    Ok(jobs)
}

async fn cancel(client: &Client, jobs: impl Iterator<Item = JobId>) {
    for job in jobs {
        if let Err(error) = client.cancel(job).await {
            say(&clean(&format!("could not cancel {job}: {}", error.explain())));
        }
    }
}

/// Waits until all are final. The first Ctrl-C cancels them, the second leaves.
async fn await_all(client: &Client, jobs: Vec<Job>) -> Result<Vec<Job>, Failure> {
    let ids: Vec<JobId> = jobs.iter().map(|job| job.job).collect();
    let mut waiting = JoinSet::new();
    for (number, job) in (1_usize..).zip(jobs) {
        let client = client.clone();
        waiting.spawn(async move { (number, await_final(&client, number, job).await) });
    }
    let (mut done, mut cancelled) = (BTreeMap::new(), false);
    while done.len() < ids.len() {
        tokio::select! {
            Some(Ok((number, job))) = waiting.join_next() => drop(done.insert(number, job?)),
            _ = tokio::signal::ctrl_c() => {
                if std::mem::replace(&mut cancelled, true) {
                    say("left before everything was done");
                    std::process::exit(i32::from(exit::UNFINISHED));
                }
                say("interrupted: cancelling all replicas; Ctrl-C leaves without waiting for their end");
                cancel(client, ids.iter().copied()).await;
            }
        }
    }
    Ok(done.into_values().collect())
}

async fn await_final(client: &Client, number: usize, mut job: Job) -> Result<Job, Failure> {
    let (mut progress, watched) = (Progress::default(), output::is_watched());
    loop {
        for remark in progress.see(&job).iter().filter(|remark| remark.lasting || watched) {
            say(&format!("replica {number}: {}", remark.text));
        }
        if job.state.is_final() {
            return Ok(job);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let id = job.job;
        job = client.job(id).await.map_err(|error| lost(&format!("stay with {id}"), &error))?;
    }
}

async fn fetch(client: &Client, job: Job) -> Result<Replica, Failure> {
    let stdout = stdout(client, &job).await?;
    let result_sha256 = if job.has_result { Some(result(client, job.job).await?) } else { None };
    let stdout_sha256 = sha256(stdout.as_bytes());
    Ok(Replica { job, stdout, stdout_sha256, result_sha256, answer: Answer::None })
}

/// What the last attempt of a final job has written to stdout.
async fn stdout(client: &Client, job: &Job) -> Result<String, Failure> {
    let attempted = format!("read the log of {}", job.job);
    let last = job.attempts.last().map_or(0, |attempt| attempt.attempt);
    let (mut text, mut query) = (String::new(), LogsQuery::default());
    loop {
        let logs = client.logs(job.job, &query).await.map_err(Failure::when(&attempted))?;
        if logs.lines.is_empty() {
            return Ok(text);
        }
        let lines = logs.lines.iter().filter(|line| line.attempt == last && line.stream == Stream::Stdout);
        text.extend(lines.map(|line| line.text.as_str()));
        query.after = Some(logs.cursor);
    }
}

async fn result(client: &Client, job: JobId) -> Result<Sha256, Failure> {
    let attempted = format!("fetch the result of {job}");
    let local = |error: std::io::Error| Failure::local(&attempted, &error.to_string(), "");
    let mut archive: File = tempfile::tempfile().map_err(local)?;
    result::download(client, job, &mut archive, &attempted).await?;
    let mut bytes = Vec::new();
    archive.seek(SeekFrom::Start(0)).map_err(local)?;
    archive.read_to_end(&mut bytes).map_err(local)?;
    Ok(sha256(&bytes))
}

/// Compares all that have come back with something; whether they are all the same.
fn compare(replicas: &mut [Replica]) -> Option<bool> {
    let mut counts = BTreeMap::<_, usize>::new();
    for replica in replicas.iter() {
        if let Some(said) = said(replica) {
            *counts.entry(said).or_default() += 1;
        }
    }
    let answered: usize = counts.values().sum();
    if answered < 2 {
        return None;
    }
    let most = counts.values().copied().max().unwrap_or_default();
    let mut leading = counts.iter().filter(|(_, count)| **count == most).map(|(said, _)| *said);
    // Where as many say one thing as another, nobody can say who is right.
    let agreed = leading.next().filter(|_| leading.next().is_none());
    for replica in replicas {
        let said = said(replica);
        replica.answer = match said {
            None => Answer::None,
            Some(_) if said == agreed => Answer::Agrees,
            Some(_) => Answer::Differs,
        };
    }
    Some(counts.len() == 1)
}

/// All that is compared.
fn said(replica: &Replica) -> Option<(i32, [u8; 32], Option<[u8; 32]>)> {
    let result = replica.result_sha256.as_ref().map(|Sha256(hash)| *hash);
    Some((replica.job.exit_code?, replica.stdout_sha256.0, result))
}

/// What `nave run --replicas` exits with.
fn code(agree: Option<bool>, replicas: &[Replica]) -> u8 {
    if agree == Some(false) {
        return exit::REPLICAS_DIFFER;
    }
    let silent = replicas.iter().find(|replica| replica.job.exit_code.is_none());
    silent.or(replicas.first()).map_or(exit::FAILED, |replica| exit_code(&replica.job))
}

fn tell(report: &Report) -> Result<(), Failure> {
    if let Some(stdout) = &report.stdout {
        output::print(stdout)?;
    }
    for (number, replica) in (1_usize..).zip(&report.replicas) {
        say(&line(number, replica));
    }
    match report.agree {
        Some(true) => {}
        Some(false) => {
            say("the replicas DIFFER: read what each says with `nave logs`, dispute with `nave dispute`")
        }
        None => say("fewer than two replicas came back with anything, so that nothing was compared"),
    }
    Ok(())
}

/// One line on a replica: what it says, in short, and where it ran.
fn line(number: usize, replica: &Replica) -> String {
    let Replica { job, answer, .. } = replica;
    let host = job.attempts.last().map_or_else(|| "no host".to_owned(), |attempt| clean(&attempt.host_name));
    let verb = match answer {
        Answer::Agrees => "agrees",
        Answer::Differs => "differs",
        Answer::None => {
            let why =
                job.reason.as_ref().map_or_else(String::new, |why| format!(" ({})", clean(&why.message)));
            return format!("replica {number} has no answer: {}{why}; {}", job.state.as_str(), job.job);
        }
    };
    let exited = job.exit_code.map_or_else(String::new, |code| format!("exit code {code}, "));
    let result = replica.result_sha256.as_ref().map_or_else(|| "none".to_owned(), short);
    let stdout = short(&replica.stdout_sha256);
    format!(
        "replica {number} {verb}: {exited}stdout {stdout}, results {result}; {} on {host}, {}",
        job.charged, job.job
    )
}

fn short(hash: &Sha256) -> String {
    hash.to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use nave_domain::job::JobState;

    use super::{super::golden, *};

    fn replica(exit_code: Option<i32>, stdout: &str, result: Option<&str>) -> Replica {
        let mut job = golden::jobs().remove(0);
        job.exit_code = exit_code;
        job.state = match exit_code {
            Some(0) => JobState::Succeeded,
            Some(_) | None => JobState::Failed,
        };
        let result_sha256 = result.map(|text| sha256(text.as_bytes()));
        let stdout_sha256 = sha256(stdout.as_bytes());
        Replica { job, stdout: stdout.to_owned(), stdout_sha256, result_sha256, answer: Answer::None }
    }

    fn compared(mut replicas: Vec<Replica>) -> (Option<bool>, Vec<Answer>, u8) {
        let agree = compare(&mut replicas);
        (agree, replicas.iter().map(|replica| replica.answer).collect(), code(agree, &replicas))
    }

    #[test]
    fn replicas_agree_by_exit_code_output_and_results_whatever_the_code_is() {
        let same = || replica(Some(0), "42\n", Some("files"));
        assert_eq!(compared(vec![same(), same()]), (Some(true), vec![Answer::Agrees; 2], 0));
        let fails = || replica(Some(3), "", None);
        assert_eq!(compared(vec![fails(), fails()]), (Some(true), vec![Answer::Agrees; 2], 3));
        let others = [
            replica(Some(1), "42\n", Some("files")),
            replica(Some(0), "41\n", Some("files")),
            replica(Some(0), "42\n", Some("other files")),
            replica(Some(0), "42\n", None),
        ];
        for other in others {
            let (agree, answers, code) = compared(vec![same(), other, same()]);
            assert_eq!((agree, code), (Some(false), exit::REPLICAS_DIFFER));
            assert_eq!(answers, [Answer::Agrees, Answer::Differs, Answer::Agrees]);
        }
    }

    #[test]
    fn of_two_that_differ_nobody_is_right() {
        let two = vec![replica(Some(0), "42", None), replica(Some(0), "41", None)];
        assert_eq!(compared(two), (Some(false), vec![Answer::Differs; 2], exit::REPLICAS_DIFFER));
    }

    #[test]
    fn what_did_not_come_back_is_not_compared_and_never_counts_as_success() {
        let one = vec![replica(Some(0), "42", None), replica(None, "", None)];
        assert_eq!(compared(one), (None, vec![Answer::None; 2], exit::FAILED));
        let two = vec![replica(Some(0), "42", None), replica(None, "", None), replica(Some(0), "42", None)];
        let (agree, answers, code) = compared(two);
        assert_eq!((agree, code), (Some(true), exit::FAILED));
        assert_eq!(answers, [Answer::Agrees, Answer::None, Answer::Agrees]);
    }

    #[test]
    fn the_same_key_keeps_the_same_jobs_apart() {
        assert_eq!(number("a"), number("a"));
        assert_ne!(number("a"), number("b"));
    }

    #[test]
    fn each_replica_is_told_in_a_line() {
        let mut two =
            [replica(Some(0), "42", None), replica(Some(0), "41", Some("files")), replica(None, "", None)];
        compare(&mut two);
        let lines: Vec<String> =
            (1..).zip(&two).map(|(number, replica)| line(number, replica) + "\n").collect();
        golden::check("replicas.txt", &lines.concat());
    }
}
