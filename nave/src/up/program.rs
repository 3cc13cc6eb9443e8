//! Programs of the machine, with argument vectors.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context as _;

/// A program on PATH or where Debian puts servers.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Runs a program to its end and returns what it wrote.
///
/// # Errors
/// What it said when it fails.
pub fn run(name: &str, args: &[&str]) -> anyhow::Result<String> {
    run_with(name, args, "")
}

/// Runs a program to its end with an input and returns what it wrote.
///
/// # Errors
/// As [`run`].
pub fn run_with(name: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
    let program = find(name).with_context(|| format!("{name} is not installed; run scripts/install"))?;
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C");
    finish(command, input).with_context(|| format!("{name} {}", args.join(" ")))
}

/// Runs a command to its end with an input and returns what it wrote.
///
/// # Errors
/// What it said last when it fails.
pub fn finish(mut command: Command, input: &str) -> anyhow::Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why itself.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command inside a network namespace, where one is given.
pub fn inside(namespace: Option<&str>, program: PathBuf) -> anyhow::Result<Command> {
    let Some(namespace) = namespace else { return Ok(Command::new(program)) };
    let nsenter = find("nsenter").context("nsenter is not installed; its package is util-linux")?;
    let mut command = Command::new(nsenter);
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    Ok(command)
}
