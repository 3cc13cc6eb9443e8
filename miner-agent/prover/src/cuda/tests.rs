//! The same launches as on a GPU, on the CPU, give the bytes that the reference gives.
#![expect(unsafe_code, reason = "the kernels are a library that takes addresses")]

use std::{
    alloc::{Layout, alloc, dealloc},
    path::{Path, PathBuf},
    process::Command,
};

use libloading::{Library, Symbol};
use nave_domain::Bytes;
use nave_proof::{
    Digest, Failure, Fill, Gemm, Lanes, Spill, Stream,
    device::{CHUNK, Device, PassChunk, Tile},
    software::{Sleeping, SoftwareDevice, SoftwareModel, Turns},
};

use super::{
    device::KernelDevice,
    machine::{Arg, Kernel, Machine, Mark, Queue},
};

/// Runs a kernel by name; its arguments are words of 64 bits.
type Launch = unsafe extern "C" fn(*const std::ffi::c_char, u32, *const u64);

/// A GPU on the CPU: everything happens at once, in the order it was asked for.
struct Emulated {
    library: Library,
    taken: Vec<(u64, Layout)>,
    _dir: tempfile::TempDir,
}

// SAFETY: it is used by one thread at a time.
unsafe impl Send for Emulated {}

impl Emulated {
    fn compile(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let library: PathBuf = dir.path().join("kernels.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/emulation/launch.cpp");
        let done = Command::new("g++")
            .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-DEMULATED"])
            .args(options)
            .arg(source)
            .arg("-o")
            .arg(&library)
            .output()
            .expect("g++ is missing: scripts/install installs it (Debian's package g++)");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        // SAFETY: it was just compiled from this project's sources.
        let library = unsafe { Library::new(&library) }.expect("a library");
        Self { library, taken: Vec::new(), _dir: dir }
    }
}

impl Machine for Emulated {
    fn take(&mut self, bytes: u64) -> Result<u64, Failure> {
        let layout =
            Layout::from_size_align(usize::try_from(bytes).expect("small").max(256), 256).expect("a layout");
        // SAFETY: the layout is not empty.
        let address = unsafe { alloc(layout) } as u64;
        self.taken.push((address, layout));
        Ok(address)
    }

    fn free(&mut self, address: u64) {
        let at = self.taken.iter().position(|(taken, _)| *taken == address).expect("it was taken");
        let (address, layout) = self.taken.swap_remove(at);
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(address as *mut u8, layout) };
    }

    fn take_host(&mut self, bytes: u64) -> Result<u64, Failure> {
        self.take(bytes)
    }

    fn launch(&mut self, _: Queue, kernel: Kernel, grid: u64, args: &[Arg]) -> Result<(), Failure> {
        let name = std::ffi::CString::new(kernel.name()).expect("a name");
        let words: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::At(value) | Arg::U64(value) => value,
                Arg::U32(value) => u64::from(value),
            })
            .collect();
        // SAFETY: the library has this function, and the addresses are memory of this machine.
        unsafe {
            let launch: Symbol<'_, Launch> = self.library.get(b"launch_by_name").expect("its one function");
            launch(name.as_ptr(), u32::try_from(grid).expect("a grid"), words.as_ptr());
        }
        Ok(())
    }

    fn up(&mut self, _: Queue, to: u64, host: u64, bytes: u64) -> Result<(), Failure> {
        // SAFETY: both are memory of this machine.
        unsafe { std::ptr::copy(host as *const u8, to as *mut u8, usize::try_from(bytes).expect("small")) };
        Ok(())
    }

    fn down(&mut self, queue: Queue, host: u64, from: u64, bytes: u64) -> Result<(), Failure> {
        self.up(queue, host, from, bytes)
    }

    fn mark(&mut self, _: Queue) -> Result<Mark, Failure> {
        Ok(Mark(0))
    }

    fn wait(&mut self, _: Queue, _: Mark) -> Result<(), Failure> {
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), Failure> {
        // SAFETY: there is as much memory.
        unsafe { std::ptr::copy(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), Failure> {
        // SAFETY: there is as much memory.
        unsafe { std::ptr::copy(from as *const u8, into.as_mut_ptr(), into.len()) };
        Ok(())
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        while let Some((address, _)) = self.taken.last() {
            self.free(*address);
        }
    }
}

/// Everything that two devices answer to the same tasks.
#[derive(Debug, PartialEq, Eq)]
struct Answers {
    products: Vec<Digest>,
    lanes: Digest,
    passes: Vec<Digest>,
    returned: (Digest, Digest),
    tiles: Vec<Vec<u8>>,
    proofs: Vec<Vec<Digest>>,
}

/// Sizes that are no powers of two: odd levels, subtrees across rows, bands and batches.
fn answers(device: &mut dyn Device) -> Result<Answers, Failure> {
    let seed = |number| Digest([number; 32]);
    let gemm = Gemm { m: 256, n: 768, k: 192, rounds: 2, samples: 1 };
    let lanes = Lanes { lanes: 700, reads: 9, samples: 1 };
    let spill = Spill { bytes: 3 * CHUNK, samples: 1 };
    device.fill(&Fill { bytes: 5 * CHUNK, depth: 2 }, &seed(1))?;
    let products = device.gemm(&gemm, &seed(2))?;
    let lanes_root = device.lanes(&lanes, &seed(3))?;
    let passes = device.stream(&Stream { passes: 2, samples: 1 }, &seed(4))?;
    device.spill(&spill, &seed(5))?;
    let returned = device.give_back(&spill, &lanes, &seed(6))?;
    let tile = |round, leaf| Tile { round, leaf };
    let opening = device.gemm_open(&[tile(0, 0), tile(0, 1), tile(0, 511), tile(1, 300), tile(1, 767)])?;
    let chunk = |pass, chunk| PassChunk { pass, chunk };
    let mut proofs = opening.proofs;
    proofs.push(device.lanes_proof(&[0, 255, 256, 699])?);
    proofs.extend(device.stream_proofs(&[chunk(0, 4), chunk(1, 0), chunk(1, 3)])?);
    let (of_chunks, of_lanes) = device.return_proofs(&[0, 2], &[17, 513])?;
    proofs.extend([of_chunks, of_lanes]);
    let tiles = opening.tiles.iter().map(|tile| tile.to_vec()).collect();
    Ok(Answers { products, lanes: lanes_root, passes, returned, tiles, proofs })
}

fn expected() -> Answers {
    let model = SoftwareModel {
        model: "reference".into(),
        vram: Bytes(1 << 30),
        ops_per_s: u64::MAX,
        bytes_per_s: u64::MAX,
        reads_per_s: u64::MAX,
        hashes_per_s: u64::MAX,
        return_bytes_per_s: u64::MAX,
        dishonesty: Vec::new(),
    };
    let mut reference = SoftwareDevice::new(&model, Box::new(Sleeping), &Turns::default());
    answers(&mut reference).expect("the reference answers")
}

fn launched(options: &[&str]) -> Answers {
    let mut device = KernelDevice::new(Emulated::compile(options)).expect("a device");
    answers(&mut device).expect("the kernels answer")
}

#[test]
fn what_is_launched_on_a_gpu_answers_as_the_reference_does() {
    assert_eq!(launched(&[]), expected());
}

#[test]
fn what_is_launched_on_sm_90a_answers_as_the_reference_does() {
    assert_eq!(launched(&["-DWGMMA"]), expected());
}

#[test]
fn where_there_is_no_driver_the_reason_says_so() {
    let task = nave_proof::DeviceTask {
        uuid: "GPU-00000000-0000-0000-0000-000000000000".into(),
        fill: None,
        gemm: None,
        lanes: None,
        stream: None,
        spill: None,
    };
    let Err(failure) = super::open(&task) else { panic!("there is no such GPU") };
    assert_eq!(failure.code, nave_proof::Reason::DeviceUnavailable);
    assert!(failure.message.contains("driver"), "{}", failure.message);
}
