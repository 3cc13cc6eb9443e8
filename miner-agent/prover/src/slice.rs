//! A slice of a GPU, in a process of its own: CUDA shows each process one slice, the one that a variable names.
//!
//! `nave-prover slice UUID` says whether it could open the slice, and then answers what it is asked, one line of JSON for
//! each line. It ends with its input, or with the thread that started it. A simulated slice goes the same way. The
//! variable itself was not tried on a GPU yet.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
};

use nave_proof::{
    DeviceTask, Digest, Failure, Fill, Gemm, Lanes, Reason, Spill, Stream,
    device::{Device, GemmOpening, PassChunk, TILE_BYTES, Tile},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What the identifiers of slices begin with.
pub const PREFIX: &str = "MIG-";
/// Longest answer, in bytes: an opening of one device.
const LINE_MAX: u64 = 256 << 20;

/// What a slice does; see [`Device`].
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Fill(Fill, Digest),
    Gemm(Gemm, Digest),
    Lanes(Lanes, Digest),
    Stream(Stream, Digest),
    Spill(Spill, Digest),
    GiveBack(Spill, Lanes, Digest),
    /// Round and leaf of each.
    GemmOpen(Vec<(u32, u64)>),
    LanesProof(Vec<u64>),
    /// Pass and chunk of each.
    StreamProofs(Vec<(u32, u64)>),
    ReturnProofs(Vec<u64>, Vec<u64>),
}

/// A [`GemmOpening`], the bytes of its leaves one after the other and hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
struct Opened {
    tiles: String,
    proofs: Vec<Vec<Digest>>,
}

/// A slice that another process computes on; that ends with it.
pub struct Slice {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Slice {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Slice {
    /// Opens the slice of a task.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn open(task: &DeviceTask, simulated: Option<&Path>) -> Result<Self, Failure> {
        let of = |error: std::io::Error| gone(&task.uuid, &error.to_string());
        let mut command = Command::new(std::env::current_exe().map_err(of)?);
        command.arg("slice").arg(&task.uuid).env("CUDA_VISIBLE_DEVICES", &task.uuid);
        if let Some(file) = simulated {
            command.arg("--simulated").arg(file);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(of)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(gone(&task.uuid, "its process has no input or no output"));
        };
        let mut slice = Self { child, input, output: BufReader::new(output) };
        slice.hear::<()>()?;
        Ok(slice)
    }

    fn ask<T: DeserializeOwned>(&mut self, ask: &Ask) -> Result<T, Failure> {
        let line = serde_json::to_string(ask).map_err(|error| gone("a slice", &error.to_string()))?;
        let written = writeln!(self.input, "{line}").and_then(|()| self.input.flush());
        written.map_err(|error| gone("a slice", &error.to_string()))?;
        self.hear()
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let mut line = String::new();
        let heard = (&mut self.output).take(LINE_MAX).read_line(&mut line);
        heard.map_err(|error| gone("a slice", &error.to_string()))?;
        let read = serde_json::from_str::<Result<T, Failure>>(&line);
        read.unwrap_or_else(|_| Err(gone("a slice", "its process broke off")))
    }
}

impl Device for Slice {
    fn fill(&mut self, fill: &Fill, seed: &Digest) -> Result<(), Failure> {
        self.ask(&Ask::Fill(*fill, *seed))
    }

    fn gemm(&mut self, gemm: &Gemm, seed: &Digest) -> Result<Vec<Digest>, Failure> {
        self.ask(&Ask::Gemm(*gemm, *seed))
    }

    fn lanes(&mut self, lanes: &Lanes, seed: &Digest) -> Result<Digest, Failure> {
        self.ask(&Ask::Lanes(*lanes, *seed))
    }

    fn stream(&mut self, stream: &Stream, seed: &Digest) -> Result<Vec<Digest>, Failure> {
        self.ask(&Ask::Stream(*stream, *seed))
    }

    fn spill(&mut self, spill: &Spill, seed: &Digest) -> Result<(), Failure> {
        self.ask(&Ask::Spill(*spill, *seed))
    }

    fn give_back(
        &mut self,
        spill: &Spill,
        lanes: &Lanes,
        seed: &Digest,
    ) -> Result<(Digest, Digest), Failure> {
        self.ask(&Ask::GiveBack(*spill, *lanes, *seed))
    }

    fn gemm_open(&mut self, wanted: &[Tile]) -> Result<GemmOpening, Failure> {
        let wanted = wanted.iter().map(|tile| (tile.round, tile.leaf)).collect();
        let Opened { tiles, proofs } = self.ask(&Ask::GemmOpen(wanted))?;
        let bytes = hex::decode(tiles).map_err(|error| gone("a slice", &error.to_string()))?;
        Ok(GemmOpening { tiles: bytes.as_chunks::<TILE_BYTES>().0.to_vec(), proofs })
    }

    fn lanes_proof(&mut self, lanes: &[u64]) -> Result<Vec<Digest>, Failure> {
        self.ask(&Ask::LanesProof(lanes.to_vec()))
    }

    fn stream_proofs(&mut self, wanted: &[PassChunk]) -> Result<Vec<Vec<Digest>>, Failure> {
        self.ask(&Ask::StreamProofs(wanted.iter().map(|chunk| (chunk.pass, chunk.chunk)).collect()))
    }

    fn return_proofs(
        &mut self,
        chunks: &[u64],
        lanes: &[u64],
    ) -> Result<(Vec<Digest>, Vec<Digest>), Failure> {
        self.ask(&Ask::ReturnProofs(chunks.to_vec(), lanes.to_vec()))
    }
}

fn gone(whose: &str, why: &str) -> Failure {
    Failure { code: Reason::DeviceUnavailable, message: format!("{whose}: {why}") }
}

/// Answers on standard output what is asked on standard input of a device that was opened, or why it was not.
pub fn serve(opened: Result<Box<dyn Device>, Failure>) -> ExitCode {
    let (said, device) = match opened {
        Ok(device) => (said(Ok(())), Some(device)),
        Err(failure) => (said::<()>(Err(failure)), None),
    };
    let (mut is_heard, mut input) = (print(&said), BufReader::new(std::io::stdin()));
    let Some(mut device) = device else { return ExitCode::SUCCESS };
    while is_heard {
        let mut line = String::new();
        let Ok(1..) = (&mut input).take(LINE_MAX).read_line(&mut line) else { return ExitCode::SUCCESS };
        let Ok(ask) = serde_json::from_str(&line) else { return ExitCode::FAILURE };
        is_heard = print(&answer(device.as_mut(), ask));
    }
    ExitCode::FAILURE
}

fn answer(device: &mut dyn Device, ask: Ask) -> Value {
    match ask {
        Ask::Fill(fill, seed) => said(device.fill(&fill, &seed)),
        Ask::Gemm(gemm, seed) => said(device.gemm(&gemm, &seed)),
        Ask::Lanes(lanes, seed) => said(device.lanes(&lanes, &seed)),
        Ask::Stream(stream, seed) => said(device.stream(&stream, &seed)),
        Ask::Spill(spill, seed) => said(device.spill(&spill, &seed)),
        Ask::GiveBack(spill, lanes, seed) => said(device.give_back(&spill, &lanes, &seed)),
        Ask::GemmOpen(wanted) => {
            let wanted: Vec<Tile> = wanted.into_iter().map(|(round, leaf)| Tile { round, leaf }).collect();
            let opened = |opening: GemmOpening| Opened {
                tiles: hex::encode(opening.tiles.as_flattened()),
                proofs: opening.proofs,
            };
            said(device.gemm_open(&wanted).map(opened))
        }
        Ask::LanesProof(lanes) => said(device.lanes_proof(&lanes)),
        Ask::StreamProofs(wanted) => {
            let wanted: Vec<PassChunk> =
                wanted.into_iter().map(|(pass, chunk)| PassChunk { pass, chunk }).collect();
            said(device.stream_proofs(&wanted))
        }
        Ask::ReturnProofs(chunks, lanes) => said(device.return_proofs(&chunks, &lanes)),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what is said is used up")]
fn said<T: Serialize>(answer: Result<T, Failure>) -> Value {
    serde_json::to_value(&answer).unwrap_or_default()
}

fn print(line: &Value) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
}
