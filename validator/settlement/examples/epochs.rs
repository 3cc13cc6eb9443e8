//! Writes bundles of random epochs, for comparisons with other implementations:
//! `epochs DIRECTORY COUNT SEED` makes `SEED-0.jsonl` and so on, of chains of four.

use std::{env, fs, path::PathBuf, process::ExitCode};

use nave_settlement::{bundle::NO_HEAD, testing::Epoch};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [directory, count, seed] = arguments.as_slice() else {
        eprintln!("epochs DIRECTORY COUNT SEED");
        return ExitCode::FAILURE;
    };
    match (count.parse(), seed.parse()) {
        (Ok(count), Ok(seed)) => write(&PathBuf::from(directory), count, seed),
        _ => {
            eprintln!("COUNT and SEED are numbers");
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &std::path::Path, count: u64, seed: u64) -> ExitCode {
    let mut before = None;
    let mut head = NO_HEAD.to_owned();
    for number in 0..count {
        if number % 4 == 0 {
            (before, head) = (None, NO_HEAD.to_owned());
        }
        let so_far = before.as_ref().map(|(epoch, settlement)| (epoch, settlement));
        let epoch = Epoch::random(seed.wrapping_mul(1_000_003).wrapping_add(number), so_far);
        let written = epoch.settle().map_err(|error| error.to_string()).and_then(|settlement| {
            let (bytes, next) = epoch.bundle(&head, &settlement).map_err(|error| error.to_string())?;
            let path = directory.join(format!("{seed}-{number}.jsonl"));
            fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok((settlement, next))
        });
        match written {
            Ok((settlement, next)) => (before, head) = (Some((epoch, settlement)), next),
            Err(error) => {
                eprintln!("epoch {number}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
