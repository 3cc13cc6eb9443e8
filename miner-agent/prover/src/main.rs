//! What the agent does in a process of its own, so that a crash or a lack of memory
//! ends only this process.
//!
//! - `nave-prover` speaks to the GPU driver and prints one JSON document:
//!   `{"devices":[…]}`, or `{"error":"…"}` where there is no driver.
//! - `nave-prover prove` does the work of one challenge; see [`prove`].
//!
//! With `--simulated FILE` there are the devices of that file, too; see [`simulated`].

mod devices;
mod prove;
mod replay;
mod simulated;

use std::{path::PathBuf, process::ExitCode};

/// What this program is told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    proves: bool,
    /// The file with simulated devices.
    simulated: Option<PathBuf>,
}

impl Options {
    fn read(arguments: impl IntoIterator<Item = String>) -> Option<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "prove" if !options.proves => options.proves = true,
                "--simulated" => options.simulated = Some(arguments.next()?.into()),
                _ => return None,
            }
        }
        Some(options)
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::read(std::env::args().skip(1)) else {
        eprintln!("usage: nave-prover [prove] [--simulated FILE]");
        return ExitCode::from(2);
    };
    if options.proves {
        return prove::run(options.simulated.as_deref());
    }
    devices::print(options.simulated.as_deref());
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_or_refused() {
        let read = |arguments: &[&str]| Options::read(arguments.iter().map(ToString::to_string));
        let file = Some(PathBuf::from("f"));
        assert_eq!(read(&[]), Some(Options::default()));
        assert_eq!(read(&["--simulated", "f"]), Some(Options { proves: false, simulated: file.clone() }));
        assert_eq!(read(&["prove", "--simulated", "f"]), Some(Options { proves: true, simulated: file }));
        assert_eq!([read(&["prove", "prove"]), read(&["--simulated"]), read(&["x"])], [None, None, None]);
    }
}
