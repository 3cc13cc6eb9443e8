//! What the agent does in a process of its own, so that a crash or a lack of memory
//! ends only this process.
//!
//! - `nave-prover` speaks to the GPU driver and prints one JSON document:
//!   `{"devices":[…]}`, or `{"error":"…"}` where there is no driver.
//! - `nave-prover prove` does the work of one challenge; see [`prove`]. A test of a disk needs `--disk DIR`,
//!   where its file is made.
//! - `nave-prover slice UUID` computes on a slice of a GPU for another process; see [`slice`].
//! - `nave-prover xids` says which errors the driver reports of GPUs, as they come; see [`xids`].
//! - `nave-prover look` says who holds memory of GPUs and stays until its input ends; see [`look`].
//! - `nave-prover see PID USER` says what of the GPUs a container sees, of which this is a process; see [`see`].
//! - `nave-prover watch UUID…` says it of these devices twice a second, and `nave-prover mode UUID exclusive|default` says how many processes
//!   may compute on a device; see [`share`].
//!
//! With `--simulated FILE` there are the devices of that file, too; see [`simulated`].

mod cuda;
mod devices;
mod disk;
mod look;
mod prove;
mod replay;
mod see;
mod share;
mod simulated;
mod slice;
mod xids;

use std::{path::PathBuf, process::ExitCode};

/// What this program is told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    proves: bool,
    looks: bool,
    listens: bool,
    /// The devices whose holders are watched.
    watches: Option<Vec<String>>,
    /// The slice that is computed on.
    slice: Option<String>,
    /// The process whose container is looked at, and the user as whom.
    sees: Option<(u32, u32)>,
    /// The device whose compute mode is set, and to what.
    mode: Option<(String, share::Mode)>,
    /// The directory for the file of a test of a disk.
    disk: Option<PathBuf>,
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
                "look" if !options.looks => options.looks = true,
                "xids" if !options.listens => options.listens = true,
                "watch" if options.watches.is_none() => options.watches = Some(arguments.by_ref().collect()),
                "see" if options.sees.is_none() => {
                    options.sees = Some((arguments.next()?.parse().ok()?, arguments.next()?.parse().ok()?));
                }
                "slice" if options.slice.is_none() => options.slice = Some(arguments.next()?),
                "mode" if options.mode.is_none() => {
                    options.mode = Some((arguments.next()?, share::Mode::read(&arguments.next()?)?));
                }
                "--disk" => options.disk = Some(arguments.next()?.into()),
                "--simulated" => options.simulated = Some(arguments.next()?.into()),
                _ => return None,
            }
        }
        let (watches, slice, mode) =
            (options.watches.is_some(), options.slice.is_some(), options.mode.is_some());
        let tasks =
            [options.proves, options.looks, options.listens, options.sees.is_some(), watches, slice, mode];
        (tasks.into_iter().filter(|task| *task).count() <= 1).then_some(options)
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::read(std::env::args().skip(1)) else {
        eprintln!(
            "usage: nave-prover [prove | slice UUID | look | xids | see PID USER | watch UUID... | mode UUID exclusive|default] [--simulated FILE] [--disk DIR]"
        );
        return ExitCode::from(2);
    };
    if options.proves {
        return prove::run(options.simulated.as_deref(), options.disk.as_deref());
    }
    if let Some(slice) = options.slice {
        return prove::run_slice(&slice, options.simulated.as_deref());
    }
    if options.looks {
        look::run();
        return ExitCode::SUCCESS;
    }
    if options.listens {
        xids::run();
        return ExitCode::SUCCESS;
    }
    if let Some((pid, user)) = options.sees {
        return see::run(pid, user);
    }
    if let Some(devices) = options.watches {
        share::watch(&devices);
        return ExitCode::SUCCESS;
    }
    if let Some((device, mode)) = options.mode {
        return share::set_mode(&device, mode);
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
        assert_eq!(
            read(&["--simulated", "f"]),
            Some(Options { simulated: file.clone(), ..Options::default() })
        );
        let proves = Options { proves: true, simulated: file.clone(), disk: file, ..Options::default() };
        assert_eq!(read(&["prove", "--simulated", "f", "--disk", "f"]), Some(proves));
        let slice = Some(Options { slice: Some("MIG-1".into()), ..Options::default() });
        assert_eq!((read(&["slice", "MIG-1"]), read(&["slice"])), (slice, None));
        assert_eq!(read(&["look"]), Some(Options { looks: true, ..Options::default() }));
        assert_eq!(read(&["xids"]), Some(Options { listens: true, ..Options::default() }));
        assert_eq!([read(&["prove", "prove"]), read(&["--simulated"]), read(&["x"])], [None, None, None]);
        let mode = Some(("GPU-1".to_owned(), share::Mode::Exclusive));
        assert_eq!(read(&["mode", "GPU-1", "exclusive"]), Some(Options { mode, ..Options::default() }));
        assert_eq!(
            [read(&["mode", "GPU-1", "x"]), read(&["mode", "GPU-1"]), read(&["look", "watch"])],
            [None, None, None]
        );
        let watches = Some(vec!["GPU-1".to_owned(), "GPU-2".to_owned()]);
        assert_eq!(read(&["watch", "GPU-1", "GPU-2"]), Some(Options { watches, ..Options::default() }));
        assert_eq!(read(&["see", "7", "8"]), Some(Options { sees: Some((7, 8)), ..Options::default() }));
        assert_eq!([read(&["see", "7"]), read(&["see", "x", "8"])], [None, None]);
        assert_eq!([read(&["look", "look"]), read(&["--disk"])], [None, None]);
    }
}
