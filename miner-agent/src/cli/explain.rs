//! `verify`: how this host stands in the market's tests, and what to do about it.

use std::{fmt::Write as _, process::ExitCode};

use clap::Args;
use nave_domain::{Timestamp, host::HostState};
use nave_miner_agent::{
    membership::Membership,
    status::{Proving, Status},
    verdicts::{self, Told},
};
use nave_sdk::{
    explain,
    wire::{enrol::StateReason, verdict::HostVerdict},
};
use serde::Serialize;

use super::args::DataArg;

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    data: DataArg,
    /// Explains every verdict, also those that were passed, with what was measured.
    #[arg(long)]
    explain: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    /// What stands in for the control plane behind the mesh in tests of the agent.
    #[arg(long, hide = true, value_name = "URL")]
    without_mesh: Option<String>,
}

/// What is known of this host's tests.
#[derive(Debug, Serialize)]
struct Standing {
    /// Where the market says that the host stands, as the agent last heard.
    state: Option<HostState>,
    /// Why it stands there.
    reason: Option<StateReason>,
    /// What to do about that.
    remedy: Option<&'static str>,
    /// What is tested now.
    now: Vec<Proving>,
    #[serde(flatten)]
    told: Told,
}

/// Succeeds where nothing keeps the host from taking jobs.
pub async fn verify(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let data = args.data.absolute()?;
    let member = Membership::load(&data)?;
    let agent = Status::read(&data)?.agent;
    let (state, reason) = agent.as_ref().map_or((None, None), |agent| (agent.state, agent.reason.clone()));
    let standing = Standing {
        state,
        remedy: reason.as_ref().and_then(|reason| explain::reason(&reason.code)).map(explain::remedy),
        reason,
        now: agent.map(|agent| agent.proofs).unwrap_or_default(),
        told: verdicts::ask(&data, &member, args.without_mesh.as_deref()).await,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&standing)?);
    } else {
        print!("{}", in_words(&standing, args.explain));
    }
    Ok(if standing.state == Some(HostState::Refused) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn in_words(standing: &Standing, all: bool) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    match (standing.state, &standing.reason) {
        (Some(state), Some(reason)) => {
            let _ = writeln!(
                text,
                "state    {}: {} ({}), since {}",
                state.as_str(),
                plain(&reason.message),
                plain(&reason.code),
                reason.since
            );
        }
        (Some(state), None) => drop(writeln!(text, "state    {}", state.as_str())),
        (None, _) => text += "state    not known: no agent runs here, or it has heard nothing yet\n",
    }
    if let Some(remedy) = standing.remedy {
        let _ = writeln!(text, "do       {remedy}");
    }
    for proof in &standing.now {
        let answered = if proof.answered { "answered" } else { "under way" };
        let tested = explain::tested(proof.kind);
        let _ = writeln!(
            text,
            "now      {tested} is tested: step {} {answered} ({})",
            proof.step, proof.challenge
        );
    }
    if let Some(why) = &standing.told.away {
        let _ = writeln!(text, "market   it does not tell now: {}", plain(why));
        text += "         what follows is what it said when it was last asked here\n";
    }
    text += &verdicts_in_words(&standing.told.verdicts, all);
    text
}

fn verdicts_in_words(verdicts: &[HostVerdict], all: bool) -> String {
    if verdicts.is_empty() {
        return "verdict  none that is known\n".to_owned();
    }
    let shown = verdicts.iter().filter(|verdict| all || verdict.is_failure());
    let text: String = shown.map(one).collect();
    if text.is_empty() {
        return format!("verdict  no failure among the last {}; --explain shows all\n", verdicts.len());
    }
    text
}

fn one(verdict: &HostVerdict) -> String {
    let (tested, at) = (explain::tested(verdict.kind), verdict.decided_at);
    let mut text = format!("verdict  {at}  {tested}: {}\n", plain(&explain::outcome(verdict)));
    let mut say = |what: &str| text += &format!("         {}\n", plain(what));
    say(&format!("{}; {}", verdict.challenge, why(verdict)));
    explain::consequences(verdict).iter().for_each(|said| say(said));
    if let Some(reason) = explain::reason(&verdict.code) {
        say(&format!("do: {}", explain::remedy(reason)));
    }
    if verdict.actions.iter().any(|action| action == "appeal") {
        say(&format!("if it is wrong: nave miner appeal {} {}", verdict.host, verdict.challenge));
    }
    text
}

/// Why and when a test was drawn.
fn why(verdict: &HostVerdict) -> String {
    let Timestamp(ms) = verdict.decided_at;
    let took = (ms - verdict.drawn_at.0).max(0) / 1_000;
    format!("{}; it took {took} s", explain::because(verdict.cause))
}

/// Part of it may come from programs of other people.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}
