//! Programs of the machine, with argument vectors.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use crate::Error;

/// Runs a program to its end and returns what it wrote.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String, Error> {
    run_with(program, args, "")
}

/// Runs a program to its end with an input and returns what it wrote.
pub(crate) fn run_with(program: &str, args: &[&str], input: &str) -> Result<String, Error> {
    let command = || format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io(format!("start {}", command())))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(Error::io(format!("wait for {}", command())))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Program { command: command(), stderr });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
