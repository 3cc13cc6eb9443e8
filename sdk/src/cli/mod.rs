//! The `nave` command: [`args`] says what can be typed, each other module does one part.

mod args;
mod audit;
mod config;
mod dispute;
mod doctor;
mod failure;
#[cfg(test)]
mod golden;
mod lists;
mod logs;
mod miner;
mod naved;
mod output;
mod progress;
mod quote;
mod receipt;
mod replicas;
mod result;
mod run;
mod settlement;
mod show;
mod since;
mod table;
mod unpack;
mod verdicts;
mod wishes;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::{CommandFactory as _, Parser as _};
use nave_domain::JobId;
use nave_sdk::client::{Client, Notice, Patience};

use self::{
    args::{Cli, Command, Global},
    config::Settings,
    failure::Failure,
};

/// Pause between two remarks that the API is away.
const TELL_AGAIN: Duration = Duration::from_secs(15);

/// What every command gets.
#[derive(Debug)]
struct Context {
    global: Global,
    settings: Settings,
}

impl Context {
    /// A client for a command that answers at once or not at all.
    fn client(&self) -> Result<Client, Failure> {
        let patience = Patience { total: Duration::from_secs(5), ..Patience::default() };
        Ok(self.settings.client()?.patience(patience))
    }

    /// A client for a command that stays with a job while the control plane restarts.
    fn patient_client(&self) -> Result<Client, Failure> {
        let client = self.settings.client()?;
        Ok(if output::is_watched() { client.on_retry(sparingly()) } else { client })
    }
}

/// Tells a person that calls are repeated, not how often.
fn sparingly() -> Notice {
    let told = Mutex::new(None::<Instant>);
    Arc::new(move |error| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() > TELL_AGAIN) {
            output::say(&table::clean(&format!("{}; trying again", error.explain())));
            *told = Some(Instant::now());
        }
    })
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    if let Some(code) = naved::intercept() {
        return code;
    }
    let cli = Cli::parse();
    let json = cli.global.json;
    ExitCode::from(start(cli).unwrap_or_else(|failure| report(&failure, json)))
}

fn report(failure: &Failure, json: bool) -> u8 {
    let printed = if json { output::print_json(failure.problem.as_ref()) } else { Ok(()) };
    if !json || printed.is_err() {
        output::say(&table::clean_lines(&failure.to_string()));
    }
    failure.code
}

fn start(cli: Cli) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::local("start", &error.to_string(), ""))?;
    runtime.block_on(dispatch(cli.global, cli.command))
}

async fn dispatch(global: Global, command: Command) -> Result<u8, Failure> {
    let cx = |global: Global| config::settings(&global).map(|settings| Context { global, settings });
    match command {
        Command::Up(passed) => return naved::exec("up", &passed.args, global.json),
        Command::Down(passed) => return naved::exec("down", &passed.args, global.json),
        Command::Completions(completions) => complete(completions.shell),
        Command::Doctor => return doctor::doctor(&global).await,
        Command::Audit(args) => return audit::audit(&args, global.json),
        Command::Judge(args) => return verdicts::judge(&args, global.json),
        Command::Run(run) => return run::run(&cx(global)?, *run).await,
        Command::Ps(ps) => lists::ps(&cx(global)?, ps).await,
        Command::Logs(logs) => logs::logs(&cx(global)?, logs).await,
        Command::Cancel(one) => cancel(&cx(global)?, one.job).await,
        Command::Dispute(args) => dispute::dispute(&cx(global)?, args).await,
        Command::Hosts(hosts) => match hosts.command {
            None => lists::hosts(&cx(global)?).await,
            Some(command) => verdicts::hosts(&cx(global)?, command).await,
        },
        Command::Classes => lists::classes(&cx(global)?).await,
        Command::Offers(args) => lists::offers(&cx(global)?, &args).await,
        Command::Quote(args) => return quote::quote(&cx(global)?, *args).await,
        Command::Params => settlement::params(&cx(global)?).await,
        Command::Balance => lists::balance(&cx(global)?).await,
        Command::Receipt(one) => lists::receipt(&cx(global)?, one.job).await,
        Command::Result(args) => result::result(&cx(global)?, args).await,
        Command::Keys(keys) => lists::keys(&cx(global)?, keys).await,
        Command::Miner(miner) => miner::miner(&cx(global)?, *miner).await,
        Command::Epoch(epochs) => lists::epoch(&cx(global)?, epochs).await,
    }?;
    Ok(0)
}

async fn cancel(cx: &Context, job: JobId) -> Result<(), Failure> {
    let job = cx.client()?.cancel(job).await.map_err(Failure::when(&format!("cancel {job}")))?;
    if cx.global.json {
        return output::print_json(&job);
    }
    output::print(&format!("{} is {}\n", job.job, job.state.as_str()))
}

fn complete(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "nave", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
