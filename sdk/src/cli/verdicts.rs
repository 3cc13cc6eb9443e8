//! `nave hosts verdicts`, `nave hosts verdict` and `nave judge`: what came of tests, and the same judged again.

use std::{fmt::Write as _, fs, io::Read as _, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nave_domain::{ChallengeId, HostId, Timestamp};
use nave_sdk::{
    client::Client,
    explain,
    judging::{self, Again},
    wire::{
        rest::Page,
        verdict::{HostVerdict, OpeningState, VerdictRecord},
    },
};
use serde_json::json;

use super::{
    Context,
    args::{HostsCommand, JudgeArgs, ListVerdicts, ShowVerdict},
    failure::{Failure, exit},
    lists::answer,
    output::{self, now},
    show::age,
    table::{clean, table},
};

/// Largest file with a verdict, in bytes: its opening in base64 and some more.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// What `nave hosts` is asked for beside the list of hosts.
pub async fn hosts(cx: &Context, command: HostsCommand) -> Result<(), Failure> {
    match command {
        HostsCommand::Verdicts(wanted) => {
            let client = cx.client()?;
            let host = host_of(&client, &wanted.host).await?;
            let attempted = format!("list verdicts on {}", clean(&wanted.host));
            list(cx, &client, host, &wanted, Failure::when(&attempted)).await
        }
        HostsCommand::Verdict(wanted) => show_one(cx, &wanted).await,
    }
}

/// Lists verdicts on a host.
///
/// # Errors
/// As the API and stdout give them.
pub async fn list(
    cx: &Context,
    client: &Client,
    host: HostId,
    wanted: &ListVerdicts,
    failed: impl FnOnce(nave_sdk::client::Error) -> Failure,
) -> Result<(), Failure> {
    let page = client.verdicts(host, Some(wanted.limit), wanted.before.as_deref()).await.map_err(failed)?;
    answer(cx, &page, |page| in_words(page, now()))?;
    if let Some(cursor) = page.next.filter(|_| output::is_watched()) {
        output::say(&format!("there are older ones: --before {cursor}, or a larger --limit"));
    }
    Ok(())
}

/// The host with this id, or else with this name.
async fn host_of(client: &Client, text: &str) -> Result<HostId, Failure> {
    if let Ok(host) = text.parse() {
        return Ok(host);
    }
    let attempted = format!("find the host {}", clean(text));
    let hosts = client.hosts().await.map_err(Failure::when(&attempted))?;
    let found = hosts.into_iter().find(|host| host.name == text).map(|host| host.host);
    found.ok_or_else(|| {
        Failure::local(&attempted, "there is no such host", "nave hosts")
            .named("not_found")
            .exiting(exit::NOT_FOUND)
    })
}

/// Verdicts as text: a line each, and below it what followed and what to do.
#[must_use]
pub fn in_words(page: &Page<HostVerdict>, now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = page.items.iter().map(|verdict| row(verdict, now)).collect();
    let mut text = table(&["AGE>", "TESTED", "CAUSE", "CODE", "VERDICT"], &rows);
    if page.items.is_empty() {
        text += "\nthis host has no verdict yet\n";
    }
    for verdict in page.items.iter().filter(|verdict| is_of_note(verdict)) {
        text += "\n";
        text += &one(verdict);
    }
    text
}

/// Whether there is more to say of it than its line does.
fn is_of_note(verdict: &HostVerdict) -> bool {
    verdict.is_failure() || verdict.appeal.is_some() || verdict.ban.is_some()
}

fn row(verdict: &HostVerdict, now: Timestamp) -> Vec<String> {
    let shadow = if verdict.shadow { " (on trial)" } else { "" };
    vec![
        age(now.since(verdict.decided_at)),
        explain::tested(verdict.kind).to_owned(),
        verdict.cause.as_str().to_owned(),
        format!("{}{shadow}", verdict.code),
        verdict.challenge.to_string(),
    ]
}

/// One verdict in a few lines.
fn one(verdict: &HostVerdict) -> String {
    let mut text = format!("{}\n", verdict.challenge);
    let tested = format!("{}: {}", explain::tested(verdict.kind), explain::because(verdict.cause));
    let mut lines = vec![("tested", tested), ("result", explain::outcome(verdict))];
    lines.extend(
        verdict.classes.iter().map(|(uuid, class)| ("class", format!("{uuid} is of {class} by now"))),
    );
    lines.extend(explain::consequences(verdict).into_iter().map(|said| ("then", said)));
    if let Some(reason) = explain::reason(&verdict.code) {
        lines.push(("do", explain::remedy(reason).to_owned()));
    }
    for (name, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<7} {}", clean(&value));
    }
    text
}

/// One verdict with its times, for a person.
#[must_use]
pub fn record(record: &VerdictRecord) -> String {
    let mut text = one(&record.verdict);
    for (step, exchange) in record.exchanges.iter().enumerate() {
        let took = match (exchange.sent_at, exchange.answered_at) {
            (Some(sent), Some(answered)) => format!("answered after {}", answered.since(sent)),
            (Some(_), None) => "not answered".to_owned(),
            (None, _) => "not fetched".to_owned(),
        };
        let said = match (&exchange.commitment, &exchange.gave_up) {
            (Some(commitment), _) => format!("committed to {commitment}"),
            (None, Some(failure)) => format!("gave up: {}", failure.message),
            (None, None) => String::new(),
        };
        let line = format!("  step {step}  {took} {said}");
        let _ = writeln!(text, "{}", clean(line.trim_end()));
    }
    if let Some(rules) = &record.rules {
        let _ = writeln!(text, "  rules   {rules}");
    }
    let kept = match record.verdict.opening {
        OpeningState::Kept => "can be fetched: give --json, then `nave judge` judges it again",
        OpeningState::Forgotten => "not kept any more",
        OpeningState::Withheld => "for the host alone: it says what software it has",
        OpeningState::Absent => "none",
    };
    let _ = writeln!(text, "  opening {kept}");
    text
}

async fn show_one(cx: &Context, wanted: &ShowVerdict) -> Result<(), Failure> {
    let client = cx.client()?;
    let host = host_of(&client, &wanted.host).await?;
    let mut found = fetch(&client, host, wanted.verdict).await?;
    if cx.global.json && found.verdict.opening == OpeningState::Kept {
        let attempted = format!("fetch the opening of {}", wanted.verdict);
        let bytes = client.opening(host, wanted.verdict).await.map_err(Failure::when(&attempted))?;
        found.opening = Some(STANDARD.encode(bytes));
    }
    answer(cx, &found, record)
}

async fn fetch(client: &Client, host: HostId, verdict: ChallengeId) -> Result<VerdictRecord, Failure> {
    client.verdict(host, verdict).await.map_err(Failure::when(&format!("show {verdict}")))
}

/// `nave judge`: exits with 0 for the same ruling.
///
/// # Errors
/// When the file cannot be read.
pub fn judge(args: &JudgeArgs, as_json: bool) -> Result<u8, Failure> {
    let attempted = format!("judge {} again", clean(&args.file.to_string_lossy()));
    let advice = "give what `nave hosts verdict HOST VERDICT --json` prints";
    let refused = |detail: String| Failure::local(&attempted, &detail, advice);
    let bytes = read(&args.file).map_err(|error| refused(error.to_string()))?;
    let mut record: VerdictRecord =
        serde_json::from_slice(&bytes).map_err(|error| refused(format!("it is no verdict: {error}")))?;
    if let Some(opening) = &args.opening {
        let bytes = read(opening).map_err(|error| refused(format!("{}: {error}", opening.display())))?;
        record.opening = Some(STANDARD.encode(bytes));
    }
    let again = judging::judge_again(&record);
    if as_json {
        output::print_json(&as_document(&record, &again))
    } else {
        output::print(&compared(&record, &again))
    }?;
    Ok(match again {
        Again::Same { .. } => 0,
        Again::Differs { .. } => exit::DIFFERS,
        Again::Untold { .. } => exit::UNTOLD,
    })
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    } else {
        fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Both rulings, one above the other.
#[must_use]
pub fn compared(record: &VerdictRecord, again: &Again) -> String {
    let verdict = &record.verdict;
    let (found, end) = match again {
        Again::Same { found } => (Some(found), "the same ruling".to_owned()),
        Again::Differs { found } => (Some(found), "NOT the same ruling".to_owned()),
        Again::Untold { why, found } => (found.as_ref(), format!("cannot be told: {why}")),
    };
    let mut text =
        format!("{} of {} on {}\n", verdict.challenge, verdict.host, explain::tested(verdict.kind));
    let lines = [("market", Some(explain::outcome(verdict))), ("here", found.cloned()), ("so", Some(end))];
    for (name, value) in lines {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<7} {}", clean(&value));
        }
    }
    text
}

fn as_document(record: &VerdictRecord, again: &Again) -> serde_json::Value {
    let (outcome, found, why) = match again {
        Again::Same { found } => ("same", Some(found), None),
        Again::Differs { found } => ("differs", Some(found), None),
        Again::Untold { why, found } => ("untold", found.as_ref(), Some(why)),
    };
    let verdict = &record.verdict;
    json!({
        "challenge": verdict.challenge, "host": verdict.host, "outcome": outcome,
        "market": explain::outcome(verdict), "here": found, "why": why,
    })
}

#[cfg(test)]
mod tests {
    use super::{super::golden, *};

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    #[test]
    fn verdicts_are_listed_with_reasons_and_what_to_do_about_them() {
        let page = Page { items: golden::verdicts(), next: None };
        golden::check("table-verdicts.txt", &in_words(&page, NOW));
        golden::check("table-no-verdicts.txt", &in_words(&Page { items: Vec::new(), next: None }, NOW));
    }

    #[test]
    fn a_verdict_is_shown_with_its_times_and_commitments() {
        golden::check("verdict.txt", &record(&golden::verdict_record()));
    }

    #[test]
    fn what_was_judged_again_stands_beside_what_the_market_says() {
        let record = golden::verdict_record();
        let found = || "claims 16.0 cores, proved 1.9 (cpu_overclaimed)".to_owned();
        let all = [
            Again::Same { found: found() },
            Again::Differs { found: found() },
            Again::Untold { why: "the opening is not kept any more".to_owned(), found: None },
        ];
        let texts: Vec<String> = all.iter().map(|again| compared(&record, again)).collect();
        golden::check("judged.txt", &texts.join("\n"));
    }
}
