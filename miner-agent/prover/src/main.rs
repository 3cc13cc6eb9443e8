//! What the agent does in a process of its own, so that a crash or a lack of memory
//! ends only this process.
//!
//! - `nave-prover` speaks to the GPU driver and prints one JSON document:
//!   `{"devices":[…]}`, or `{"error":"…"}` where there is no driver.
//! - `nave-prover prove` does the work of one challenge; see [`prove`].

mod devices;
mod prove;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => devices::print(),
        ["prove"] => return prove::run(),
        [..] => {
            eprintln!("usage: nave-prover [prove]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
