//! `naved`: the control plane of a Nave market.
//!
//! One program, roles by argument. `naved up` runs all of them on one machine, each as a
//! process of its own, and keeps them running.

mod admin;
mod bench;
mod cli;
mod clouds;
mod hub;
mod keys;
mod roles;
mod up;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::{EnvFilter, fmt};

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_log(cli.log_json);
    if let Command::Tunnel(args) = cli.command {
        return ended(nave_mesh::tunnel::run(&args.name, args.namespace.as_deref()).map_err(Into::into));
    }
    if let Command::Bench(command) = &cli.command {
        return ended(bench::run(command));
    }
    // Fails only when a provider is installed already, which is just as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(cli.command)));
    ended(done)
}

fn ended(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("naved: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => up::up(*args).await,
        Command::Down(args) => up::down(&args).await,
        Command::Gateway(args) => roles::gateway(args).await,
        Command::Hub(args) => roles::hub(args).await,
        Command::Verifier(args) => roles::verifier(args).await,
        Command::Scheduler(args) => roles::scheduler(args).await,
        Command::Validator(args) => roles::validator(args).await,
        Command::Treasury(args) => roles::treasury(args).await,
        Command::Migrate(args) => roles::migrate(args).await,
        Command::Admin(args) => admin::run(args).await,
        Command::Relay(args) => up::relay::run(args, roles::stop_signal()?).await,
        // It makes a runtime of its own.
        Command::Tunnel(_) => Ok(()),
        // It needs none.
        Command::Bench(_) => Ok(()),
    }
}

fn init_log(json: bool) {
    let filter =
        EnvFilter::try_from_env("NAVE_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,gotatun=warn"));
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { log.json().init() } else { log.init() }
}
