//! Tests that are no work of cores, memory or GPUs: of a disk, of software, and of a way between two hosts.

use std::{
    env,
    fs::{self, File, OpenOptions},
    net::Ipv6Addr,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    time::Instant,
};

use anyhow::{Context as _, bail};
use nave_domain::{Bytes, Millis, Timestamp};
use nave_proof::{
    Digest, Disk, Evidence, Failure, Findings, Reason, Resources, Span, Task,
    findings::{Component, Driver, Engine, Preloaded, Trial},
    transfer::{Content, Fetched, PIECE, reached},
};
use nix::fcntl::OFlag;

use super::{
    exam::{Exam, fresh, nonce, take},
    process_time,
};

/// A file that has no name, past the kernel's cache where that can be.
struct Unnamed(File);

impl Unnamed {
    fn open() -> Result<Self, Failure> {
        let path = env::temp_dir().join(format!("nave-bench-disk.{}", std::process::id()));
        let open = |flags: OFlag| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).custom_flags(flags.bits()).open(&path)
        };
        let file = open(OFlag::O_DIRECT).or_else(|_| open(OFlag::empty())).map_err(broken);
        drop(fs::remove_file(&path));
        file.map(Self)
    }
}

impl Disk for Unnamed {
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all_at(bytes, offset).map_err(broken)
    }

    fn settle(&self) -> Result<(), Failure> {
        self.0.sync_all().map_err(broken)
    }

    fn read(&self, offset: u64, piece: &mut [u8]) -> Result<(), Failure> {
        self.0.read_exact_at(piece, offset).map_err(broken)
    }
}

fn broken(error: std::io::Error) -> Failure {
    Failure { code: Reason::Aborted, message: error.to_string() }
}

/// A file of a GiB where this machine has its temporary files.
pub fn storage() -> anyhow::Result<Exam> {
    let disk = |_: &_| Unnamed::open().map(|disk| Box::new(disk) as Box<dyn Disk>);
    take(Task::storage(Bytes(2 * Bytes::GIB)), Resources::new(1).with_disk(disk), 1)
}

/// A transfer without a line: what a source makes, and who fetches it hashes.
pub fn transfer() -> anyhow::Result<Exam> {
    let task = Task::transfer(Ipv6Addr::LOCALHOST, 9);
    let mut challenge = fresh(task.clone(), 1);
    let Task::Transfer(task) = task else { bail!("a transfer is another test") };
    let (request, key) = (nonce(1, 1), nonce(1, 2));
    let (began, core) = (Instant::now(), process_time()?);
    let (content, mut fetched, mut chunk) = (Content::of(&key, &request), Fetched::default(), vec![0; PIECE]);
    for number in 0..task.bytes / u64::try_from(PIECE)? {
        content.chunk(number, &mut chunk);
        fetched.take(&chunk);
    }
    let commitments = vec![reached(&challenge), fetched.commitment().context("nothing came")?];
    challenge.reveals = vec![request, key];
    let opening = fetched.opening(&challenge, &task).context("nothing came that could be opened")?;
    let (wall, core) = (began.elapsed(), process_time()?.saturating_sub(core));
    Ok(Exam { spans: spans(3), evidence: Evidence { commitments, opening }, challenge, wall, core })
}

/// What a host says of its software, as long as it is where nothing is wrong; finding it out is not measured.
pub fn software() -> anyhow::Result<Exam> {
    let challenge = fresh(Task::software(), 1);
    let component = |name: &str, version: &str| Component { name: name.into(), version: version.into() };
    let findings = Findings {
        nonce: challenge.nonce,
        kernel: "6.8.0-51-generic".into(),
        architecture: "x86_64".into(),
        boot: Digest([9; 32]),
        driver: Some(Driver { module: Some("570.195.03".into()), library: Some("570.195.03".into()) }),
        engine: Some(Engine {
            version: "28.5.2".into(),
            api: "1.51".into(),
            components: vec![component("containerd", "1.7.28"), component("runc", "1.3.3")],
            runtimes: vec!["nvidia".into(), "runc".into()],
        }),
        toolkit: vec![component("nvidia-ctk", "1.17.8")],
        preloaded: Preloaded::default(),
        mounts: Vec::new(),
        mapped: Vec::new(),
        holders: Vec::new(),
        container: Trial::Works,
        gpus: Trial::Works,
    };
    let (began, core) = (Instant::now(), process_time()?);
    let opening = serde_json::to_vec(&findings).context("write findings as JSON")?;
    let (wall, core) = (began.elapsed(), process_time()?.saturating_sub(core));
    Ok(Exam {
        spans: spans(1),
        evidence: Evidence { commitments: Vec::new(), opening },
        challenge,
        wall,
        core,
    })
}

fn spans(count: usize) -> Vec<Span> {
    vec![Span { sent: Timestamp(0), received: Timestamp(0).after(Millis(1)) }; count]
}
