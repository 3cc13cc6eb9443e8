//! What an agent finds of the software on its machine.
//!
//! All of it is what a host says of itself. It catches honest mistakes, such as a toolkit with
//! a known flaw, and cheats who did not bother to change the agent; nothing in it is proof, and nothing
//! of it enters the verdict of a proof. What it means is decided elsewhere, against floors.

use nave_domain::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Digest, Nonce};
#[cfg(feature = "judge")]
use crate::{Failure, Reason};

/// Longest text of a finding, in bytes.
pub const FOUND_TEXT_MAX: usize = 256;
/// Most entries of each list of findings.
pub const FOUND_MAX: usize = 64;
/// Longest findings as JSON, in bytes.
pub const FINDINGS_MAX: usize = 40 << 10;

/// What an agent found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Findings {
    /// The nonce of the challenge that they answer.
    pub nonce: Nonce,
    /// The running kernel's release.
    pub kernel: String,
    /// The machine's architecture, as Rust names it.
    pub architecture: String,
    /// SHA-256 of what the kernel calls this boot: it changes with a restart and tells nothing else.
    pub boot: Digest,
    /// The GPU driver, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// What runs containers; none where jobs are simulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// Programs that give GPUs to containers, and their versions.
    pub toolkit: Vec<Component>,
    /// What is loaded into programs before their own libraries.
    pub preloaded: Preloaded,
    /// Mounts over files of the driver.
    pub mounts: Vec<Mount>,
    /// Files that a prover runs code from.
    pub mapped: Vec<Mapped>,
    /// Processes that hold memory of GPUs and belong neither to the agent nor to a job.
    pub holders: Vec<Holder>,
    /// Whether a container runs.
    pub container: Trial,
    /// Whether a container sees the GPUs.
    pub gpus: Trial,
}

/// The GPU driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Driver {
    /// Version of the kernel's module, as the kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Version of the driver, as its library says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
}

/// What runs containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Its version.
    pub version: String,
    /// Newest version of its API.
    pub api: String,
    /// What it is made of, such as `runc`.
    pub components: Vec<Component>,
    /// The runtimes that it can start containers with.
    pub runtimes: Vec<String>,
}

/// A program with its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// What it is called.
    pub name: String,
    /// Its version, as it says.
    pub version: String,
}

/// What is loaded into programs before their own libraries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preloaded {
    /// Entries of `/etc/ld.so.preload`.
    pub everywhere: Vec<String>,
    /// Variables of the agent and of provers that change what the dynamic linker loads: `LD_PRELOAD=…`.
    pub environment: Vec<String>,
}

/// A mount over a file of the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The file that it covers.
    pub covers: String,
    /// Where it is mounted.
    pub point: String,
    /// The type of the file system.
    pub kind: String,
    /// What is mounted there: a directory or file in that file system.
    pub root: String,
}

/// A file that a prover runs code from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapped {
    /// Its path.
    pub path: String,
    /// Whether another file or none is at that path by now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
}

/// A process that holds memory of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// The device, as the inventory names it.
    pub device: String,
    /// The process's number.
    pub pid: u32,
    /// How much it holds, as far as the driver tells.
    pub memory: Bytes,
}

/// Whether something works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trial {
    /// There is nothing to try.
    NotApplicable,
    /// It does.
    Works,
    /// It does not, and why.
    Fails(String),
}

impl Findings {
    /// Reads what an agent says it found.
    ///
    /// # Errors
    /// Findings that cannot be read, are longer than any, or answer another challenge.
    #[cfg(feature = "judge")]
    pub fn read(opening: &[u8], nonce: &Nonce) -> Result<Self, Failure> {
        let malformed = |message: String| Failure { code: Reason::EvidenceMalformed, message };
        if opening.len() > FINDINGS_MAX {
            let message = format!("the findings have {} bytes, at most {FINDINGS_MAX}", opening.len());
            return Err(malformed(message));
        }
        let found: Self = serde_json::from_slice(opening)
            .map_err(|error| malformed(clip(&format!("the findings cannot be read: {error}"))))?;
        if let Some(what) = found.excess() {
            return Err(malformed(format!("the findings have too much of {what}")));
        }
        if found.nonce != *nonce {
            let message = "the findings are for another challenge".into();
            return Err(Failure { code: Reason::BindingWrong, message });
        }
        Ok(found)
    }

    /// What is longer than it may be, or has what no text may have.
    #[must_use]
    pub fn excess(&self) -> Option<&'static str> {
        let engine = self.engine.iter();
        let lists = [
            ("toolkits", self.toolkit.len()),
            ("preloads", self.preloaded.everywhere.len()),
            ("variables", self.preloaded.environment.len()),
            ("mounts", self.mounts.len()),
            ("mapped files", self.mapped.len()),
            ("holders", self.holders.len()),
            ("components", engine.clone().map(|engine| engine.components.len()).sum()),
            ("runtimes", engine.map(|engine| engine.runtimes.len()).sum()),
        ];
        let long = lists.into_iter().find(|(_, len)| *len > FOUND_MAX).map(|(name, _)| name);
        let bad = |text: &str| text.len() > FOUND_TEXT_MAX || text.chars().any(char::is_control);
        long.or_else(|| self.texts().iter().any(|text| bad(text)).then_some("text"))
    }

    fn texts(&self) -> Vec<&str> {
        let mut texts: Vec<&str> = vec![&self.kernel, &self.architecture];
        let driver = self.driver.iter().flat_map(|driver| [&driver.module, &driver.library]);
        texts.extend(driver.flatten().map(String::as_str));
        if let Some(engine) = &self.engine {
            texts.extend([engine.version.as_str(), &engine.api]);
            texts.extend(engine.runtimes.iter().map(String::as_str));
        }
        let components = self.engine.iter().flat_map(|engine| &engine.components).chain(&self.toolkit);
        texts.extend(components.flat_map(|component| [component.name.as_str(), &component.version]));
        let Preloaded { everywhere, environment } = &self.preloaded;
        texts.extend(everywhere.iter().chain(environment).map(String::as_str));
        for mount in &self.mounts {
            texts.extend([mount.covers.as_str(), &mount.point, &mount.kind, &mount.root]);
        }
        texts.extend(self.mapped.iter().map(|mapped| mapped.path.as_str()));
        texts.extend(self.holders.iter().map(|holder| holder.device.as_str()));
        for trial in [&self.container, &self.gpus] {
            match trial {
                Trial::Fails(why) => texts.push(why),
                Trial::NotApplicable | Trial::Works => {}
            }
        }
        texts
    }
}

/// A text as findings may have it: without control characters, and not too long.
#[must_use]
pub fn clip(text: &str) -> String {
    let mut clipped = String::new();
    for c in text.trim().chars().filter(|c| !c.is_control()) {
        if clipped.len() + c.len_utf8() > FOUND_TEXT_MAX {
            break;
        }
        clipped.push(c);
    }
    clipped
}
