//! What can be typed after `nave`.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Args, Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser, ValueParser},
};
use nave_domain::{
    Bytes, ChallengeId, JobId, KeyId, MicroUsd, MilliCpu, Millis, QuoteId,
    job::{Egress, JobState},
};
use nave_sdk::wire::{enrol::PublicKey, rest::SCOPES};

use super::wishes::Wishes;

/// Runs commands on rented machines and says what they cost.
#[derive(Debug, Parser)]
#[command(name = "nave", version, max_term_width = 100, after_help = AFTER)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "Exit codes: 0 done, 1 an error, 2 wrong usage, 101 not finished, 102 not found; \
                     `nave run` has more of them.";

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Print one JSON document on stdout and nothing else
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// URL of the API
    #[arg(long, global = true, env = "NAVE_URL", hide_env_values = true, help_heading = "Everywhere")]
    pub url: Option<String>,
    /// API token; the environment is safer, other users see arguments
    #[arg(long, global = true, env = "NAVE_TOKEN", hide_env_values = true, help_heading = "Everywhere")]
    pub token: Option<String>,
    /// Do not ask before something that cannot be undone
    #[arg(short = 'y', long, global = true, help_heading = "Everywhere")]
    pub yes: bool,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine (runs `naved up`)
    #[command(disable_help_flag = true)]
    Up(Passed),
    /// Stop what `nave up` started (runs `naved down`)
    #[command(disable_help_flag = true)]
    Down(Passed),
    /// Run a command on a rented machine, show its output and exit with its code
    #[command(after_help = RUN_AFTER)]
    Run(Box<Run>),
    /// List jobs, newest first
    Ps(Ps),
    /// Print what a job has written; ends there unless told to follow
    Logs(LogsArgs),
    /// End a job
    Cancel(OneJob),
    /// Say that a result is wrong, or see what came of that
    #[command(after_help = DISPUTE_AFTER)]
    Dispute(DisputeArgs),
    /// List hosts, or what came of the tests of one
    Hosts(HostsArgs),
    /// Judge a verdict again from its published evidence
    #[command(after_help = JUDGE_AFTER)]
    Judge(JudgeArgs),
    /// Compute an epoch's pay and weights again from its published evidence
    #[command(after_help = AUDIT_AFTER)]
    Audit(AuditArgs),
    /// List capacity that can be rented now, cheapest first
    Offers(Box<super::wishes::OffersArgs>),
    /// List classes of GPUs: what clouds ask for them, and how much of them is leased here
    Classes,
    /// Have a place held at its price, for `nave run --quote`
    Quote(Box<QuoteArgs>),
    /// Show the market's parameters: what holds, what is announced, and what held before
    Params,
    /// Show what can be spent and what is set aside
    Balance,
    /// Show what a job cost and why
    Receipt(ReceiptArgs),
    /// Fetch the result files of a job
    Result(ResultArgs),
    /// List, make and revoke API keys
    #[command(subcommand)]
    Keys(Keys),
    /// Show what miners delivered and the weights it earns
    #[command(subcommand)]
    Epoch(Epochs),
    /// Let hosts join under your hotkey, and keep them
    #[command(after_help = super::miner::args::AFTER)]
    Miner(Box<super::miner::args::Miner>),
    /// Check configuration, API, token and hosts, and say how to fix them
    Doctor,
    /// Print a completion script
    Completions(Completions),
}

/// Arguments for another program.
#[derive(Debug, Args)]
pub struct Passed {
    /// Passed on to `naved`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARG")]
    pub args: Vec<OsString>,
}

const RUN_AFTER: &str = "\
Exit codes: the command's own; 1 an error before the job was accepted, 2 wrong usage, 100 failed
without a code, 101 not finished, 102 not found, 103 cancelled, 104 spend cap reached, 107 replicas
differ.
Ctrl-C cancels the job and waits for its end; a second one leaves.";

/// `nave run`.
#[derive(Debug, Args)]
pub struct Run {
    /// What to run it on.
    #[command(flatten)]
    pub job: JobArgs,
    /// Run it on this quote, at its price; what was asked of the quote is asked of the job
    #[arg(long, value_name = "QUOTE", conflicts_with_all = PLACING)]
    pub quote: Option<QuoteId>,
    /// Say where it would run and for what price; nothing is spent or held
    #[arg(long, conflicts_with_all = ["detach", "out", "quote", "replicas"])]
    pub dry_run: bool,
    /// Run it with so many different miners and compare exit codes, stdout and result files; each costs
    /// as much as one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=5),
          conflicts_with_all = ["detach", "dry_run", "quote", "group", "gang"])]
    pub replicas: Option<u8>,
    /// Submitting again with the same key gives the same job
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Print the job's id and do not wait
    #[arg(long, conflicts_with = "out")]
    pub detach: bool,
    /// Where to unpack result files
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The command and its arguments; no shell is involved
    #[arg(last = true, required = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

/// Options that say where a job may run: a quote has said so already.
const PLACING: [&str; 21] = [
    "vram",
    "gpu",
    "gpus",
    "share",
    "region",
    "term",
    "trust",
    "isolation",
    "max_price",
    "cpu",
    "memory",
    "disk",
    "egress",
    "group",
    "gang",
    "queue_limit",
    "start_limit",
    "run_limit",
    "expect",
    "max_spend",
    "replicas",
];

/// What a job is like, whatever it runs.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// Where it may run.
    #[command(flatten)]
    pub wishes: Wishes,
    /// Virtual CPUs, such as 2 or 0.5
    #[arg(long, value_name = "CORES", default_value = "1")]
    pub cpu: MilliCpu,
    /// Memory; a job that uses more is ended
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    pub memory: Bytes,
    /// Space of the working directory
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub disk: Bytes,
    /// Container image; left out, the market's default
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Environment variable; without `=VALUE` its value here is passed on
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Which addresses it may reach
    #[arg(long, default_value = "public", value_parser = egress())]
    pub egress: Egress,
    /// Your jobs of the same group reach one another, on whatever hosts they are
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Of how many jobs of its group it is one that start together or not at all; each gets whole GPUs
    #[arg(long, value_name = "N")]
    pub gang: Option<u8>,
    /// Longest wait for a host
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    pub queue_limit: Millis,
    /// Longest time from a chosen host to a running command
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    pub start_limit: Millis,
    /// Longest run of one attempt
    #[arg(long, value_name = "SPAN", default_value = "1h")]
    pub run_limit: Millis,
    /// How long you think it will run; bounds nothing
    #[arg(long, value_name = "SPAN")]
    pub expect: Option<Millis>,
    /// How often a failed command is tried again
    #[arg(long, value_name = "N", default_value = "0")]
    pub retries: u8,
    /// Most it may cost in dollars, over all attempts
    #[arg(long, value_name = "DOLLARS", default_value = "0.50")]
    pub max_spend: MicroUsd,
}

/// `nave quote`.
#[derive(Debug, Args)]
pub struct QuoteArgs {
    /// What to run on it.
    #[command(flatten)]
    pub job: JobArgs,
    /// For how long the place is held; 5m at most
    #[arg(long, value_name = "SPAN", default_value = "60s")]
    pub hold: Millis,
    /// Asking again with the same key gives the same quote
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Give this quote back before it expires
    #[arg(long, value_name = "QUOTE", exclusive = true)]
    pub release: Option<QuoteId>,
    /// The command, which may be another one when the quote is used
    #[arg(last = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

/// `nave ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// Most jobs to list
    #[arg(short = 'n', long, value_name = "N", default_value = "20")]
    pub limit: u32,
    /// Only jobs in this state
    #[arg(long, value_parser = job_state())]
    pub state: Option<JobState>,
    /// Continue a list: the `next` of its JSON
    #[arg(long, value_name = "CURSOR")]
    pub before: Option<String>,
}

/// `nave logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The job
    pub job: JobId,
    /// Only the newest N pieces of output
    #[arg(long, value_name = "N")]
    pub tail: Option<u32>,
    /// Only what came since: a span such as 10m, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = super::since::parse)]
    pub since: Option<super::since::Since>,
    /// Stay until the job ends; with --json one document per piece of output
    #[arg(short = 'f', long)]
    pub follow: bool,
}

const JUDGE_AFTER: &str = "\
Fetch a verdict with its evidence: nave hosts verdict HOST VERDICT --json > FILE
Exit codes: 0 the same ruling, 1 an error, 2 wrong usage, 105 another ruling, 106 what is published
does not decide it, such as whose a GPU is or what is known of its class.";

/// `nave judge`.
#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// JSON of one verdict; - for stdin
    pub file: PathBuf,
    /// File with the bytes of its opening, where those are not in the JSON
    #[arg(long, value_name = "FILE")]
    pub opening: Option<PathBuf>,
}

const AUDIT_AFTER: &str = "\
Needs no network. `nave epoch evidence N` fetches a bundle; several, in the order of their epochs, are
also checked against one another. Exit codes: 0 all follows from the evidence, 1 a bundle cannot be read,
105 something does not follow: the first difference is printed.";

/// `nave audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Bundles of evidence, packed with gzip or not, in the order of their epochs; - for stdin
    #[arg(required = true, value_name = "BUNDLE")]
    pub bundles: Vec<PathBuf>,
    /// The market that they must be of; what a bundle says of itself is no proof
    #[arg(long, value_name = "KEY")]
    pub market_key: Option<PublicKey>,
    /// The head that the bundle must have, as it was published with its epoch's weights
    #[arg(long, value_name = "HASH")]
    pub head: Option<String>,
    /// Show every sum of this miner
    #[arg(long, value_name = "HOTKEY")]
    pub miner: Option<String>,
}

/// `nave hosts`.
#[derive(Debug, Args)]
pub struct HostsArgs {
    /// What to look at; left out, the list of hosts
    #[command(subcommand)]
    pub command: Option<HostsCommand>,
}

/// `nave hosts`, beside the list.
#[derive(Debug, Subcommand)]
pub enum HostsCommand {
    /// List what came of the tests of a host, newest first, with reasons and remedies
    Verdicts(ListVerdicts),
    /// Show one verdict; with --json its whole evidence, for `nave judge`
    Verdict(ShowVerdict),
}

/// `nave hosts verdicts` and `nave miner verdicts`.
#[derive(Debug, Args)]
pub struct ListVerdicts {
    /// Its name or id
    pub host: String,
    /// Most verdicts to list
    #[arg(short = 'n', long, value_name = "N", default_value = "20")]
    pub limit: u32,
    /// Continue a list: the `next` of its JSON
    #[arg(long, value_name = "CURSOR")]
    pub before: Option<String>,
}

/// `nave hosts verdict` and `nave miner appeal`.
#[derive(Debug, Args)]
pub struct ShowVerdict {
    /// The host's name or id
    pub host: String,
    /// The verdict: the id of its challenge
    pub verdict: ChallengeId,
}

/// A command on one job.
#[derive(Debug, Args)]
pub struct OneJob {
    /// The job
    pub job: JobId,
}

const DISPUTE_AFTER: &str = "\
Its host is tested again in whole as soon as it is free. No money moves, and a host that passes may
have been wrong all the same: `nave run --replicas` compares results.";

/// `nave dispute`.
#[derive(Debug, Args)]
pub struct DisputeArgs {
    /// The job
    pub job: JobId,
    /// What is wrong with its result; left out, what came of earlier disputes is shown
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Which attempt; left out, the last one that has a result
    #[arg(long, value_name = "N", requires = "reason")]
    pub attempt: Option<u32>,
}

/// `nave receipt`.
#[derive(Debug, Args)]
pub struct ReceiptArgs {
    /// The job; left out, the newest
    pub job: Option<JobId>,
}

/// `nave result`.
#[derive(Debug, Args)]
pub struct ResultArgs {
    /// The job
    pub job: JobId,
    /// Directory to unpack into, or a .tar file to write, or - for an archive on stdout;
    /// left out, a directory named after the job
    #[arg(short = 'o', long = "out", value_name = "DIR|FILE")]
    pub out: Option<PathBuf>,
}

/// `nave keys`.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// List API keys
    List,
    /// Make an API key and print its token, this once
    Create(KeyCreate),
    /// End an API key
    Revoke(KeyRevoke),
}

/// `nave keys create`.
#[derive(Debug, Args)]
pub struct KeyCreate {
    /// What to call it
    pub label: String,
    /// What it may do; can be given several times
    #[arg(long = "scope", value_name = "SCOPE", value_parser = PossibleValuesParser::new(SCOPES),
          default_values = ["jobs:read", "jobs:write", "balance:read", "hosts:read"])]
    pub scopes: Vec<String>,
}

/// `nave keys revoke`.
#[derive(Debug, Args)]
pub struct KeyRevoke {
    /// The key
    pub key: KeyId,
}

/// `nave epoch`.
#[derive(Debug, Subcommand)]
pub enum Epochs {
    /// List epochs, newest first
    List(EpochList),
    /// Show one epoch; left out, the newest
    Show(EpochShow),
    /// Fetch the evidence of an epoch, for `nave audit`
    Evidence(EpochEvidence),
}

/// `nave epoch list`.
#[derive(Debug, Args)]
pub struct EpochList {
    /// Most epochs to list
    #[arg(short = 'n', long, value_name = "N", default_value = "20")]
    pub limit: u32,
}

/// `nave epoch show`.
#[derive(Debug, Args)]
pub struct EpochShow {
    /// Its number
    #[arg(value_name = "N")]
    pub epoch: Option<i64>,
}

/// `nave epoch evidence`.
#[derive(Debug, Args)]
pub struct EpochEvidence {
    /// Its number
    #[arg(value_name = "N")]
    pub epoch: i64,
    /// Where to write it; - for stdout [default: epoch-N.jsonl.gz here]
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `nave completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

fn egress() -> ValueParser {
    ValueParser::new(PossibleValuesParser::new(["public", "none"]).map(|text| match text.as_str() {
        "none" => Egress::None,
        _ => Egress::Public,
    }))
}

fn job_state() -> ValueParser {
    let names = JobState::ALL.map(JobState::as_str);
    ValueParser::new(
        PossibleValuesParser::new(names).try_map(|text| {
            JobState::ALL.into_iter().find(|state| state.as_str() == text).ok_or("not a state")
        }),
    )
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    fn run(line: &str) -> Run {
        let Command::Run(run) = parse(line).expect("a valid line").command else { panic!("another command") };
        *run
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_sizes_spans_and_dollars_in_their_usual_forms() {
        let run = run("nave run --vram 8GiB --cpu 0.5 --run-limit 90m --max-spend 0.25 -- nvidia-smi -L");
        assert_eq!(run.job.wishes.vram.map(|vram| vram.least), Some(Bytes(8 * Bytes::GIB)));
        assert_eq!(
            (run.job.cpu, run.job.run_limit, run.job.max_spend),
            (MilliCpu(500), Millis(5_400_000), MicroUsd(250_000))
        );
        assert_eq!(run.argv, ["nvidia-smi", "-L"]);
    }

    #[test]
    fn what_follows_the_dashes_is_never_an_option_of_nave() {
        let cli = parse("nave run -- echo --json -y --url x").expect("a valid line");
        assert!(!cli.global.json && !cli.global.yes && cli.global.url.is_none());
    }

    #[test]
    fn options_of_every_command_may_stand_before_or_after_it() {
        assert!(parse("nave --json ps").expect("before").global.json);
        assert!(parse("nave ps --json").expect("after").global.json);
    }

    #[test]
    fn a_run_without_a_command_or_with_a_misspelt_option_is_refused() {
        assert_eq!(parse("nave run").expect_err("no command").kind(), ErrorKind::MissingRequiredArgument);
        let misspelt = parse("nave run --vrma 8GiB -- true").expect_err("no such option");
        assert_eq!(misspelt.kind(), ErrorKind::UnknownArgument);
        assert_eq!(misspelt.exit_code(), 2);
    }

    #[test]
    fn what_a_quote_has_settled_is_not_asked_for_again() {
        let quote = "quote_00000000000000000000000000000001";
        let quoted = run(&format!("nave run --quote {quote} -e A=1 --retries 2 -- true"));
        assert_eq!(quoted.quote.map(|quote| quote.to_string()).as_deref(), Some(quote));
        for option in ["--vram 8GiB", "--cpu 1", "--region eu", "--max-spend 1", "--dry-run", "--gpu H100"] {
            let refused = parse(&format!("nave run --quote {quote} {option} -- true")).expect_err(option);
            assert_eq!(refused.kind(), ErrorKind::ArgumentConflict, "{option}");
        }
    }

    #[test]
    fn everything_after_up_is_passed_on() {
        let Command::Up(passed) = parse("nave up --hosts 2 --help").expect("passed on").command else {
            panic!("another command");
        };
        assert_eq!(passed.args, ["--hosts", "2", "--help"]);
    }

    #[test]
    fn an_unknown_state_or_scope_is_refused() {
        assert!(parse("nave ps --state lost").is_err());
        assert!(parse("nave keys create ci --scope root").is_err());
        assert!(parse("nave logs host_00000000000000000000000000000007").is_err());
    }
}
