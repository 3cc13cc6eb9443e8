//! The local cloud: parts of one machine, rented and given back as other clouds' machines are. It stands
//! for a cloud where there is none: what it rents is real, and its prices are made up.
//!
//! Both sides meet in a directory, the [`Estate`], and in nothing else. Whoever rents makes and marks
//! machines in it; whoever owns the machine makes hosts of them, and says what became of them:
//!
//! ```text
//! offers.json               what is offered                          of its owner
//! machines/TAG/wish.json    what was launched, made in one step      of who rents
//! machines/TAG/boot         the script it boots with, unreadable for others
//! machines/TAG/returned     it is to go
//! machines/TAG/told.json    what it does                             of its owner
//! ```
//!
//! A machine is there as long as its directory is.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nave_domain::{Bytes, MicroUsd, MilliCpu, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::shapes;
use crate::{
    error::{CloudError, Kind},
    provider::{Answer, Availability, Cloud, CloudId, CloudOffer, Launch, Machine, MachineState, Provider},
    secret::payload,
};

/// First letter of what is not whole yet, or not any more.
const HIDDEN: char = '.';

/// A directory in which machines are wished for, made and given back.
#[derive(Debug, Clone)]
pub struct Estate {
    dir: PathBuf,
}

/// A kind of machine that is offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offered {
    /// What it is called.
    pub id: String,
    /// Where it is said to be.
    pub region: String,
    /// How many machines there may be at a time, of all kinds together.
    pub count: u32,
    /// For an hour; made up.
    pub price: MicroUsd,
    /// Cores.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
    /// Disk.
    pub disk: Bytes,
    /// Simulated GPUs.
    pub devices: u32,
    /// What those are called.
    pub model: String,
    /// Memory of each of them.
    pub vram_each: Option<Bytes>,
}

/// What was launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Of which offer.
    pub offer: String,
    /// Where.
    pub region: String,
    /// For an hour.
    pub price: MicroUsd,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// When it ends even if nobody gives it back.
    pub dead_man: Timestamp,
}

/// What its owner says of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What it does.
    pub does: Does,
    /// Which part of the owner's machine it is.
    pub number: u8,
    /// Where it can be reached.
    pub address: Option<String>,
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Does {
    /// It boots.
    Boots,
    /// It runs.
    Runs,
    /// It could not be made.
    Failed,
}

/// A machine as it stands in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rented {
    /// Its name, which is its tag.
    pub name: String,
    /// What was launched; none where that cannot be read.
    pub wish: Option<Wish>,
    /// Whether it is to go.
    pub is_returned: bool,
    /// What its owner said last.
    pub told: Option<Told>,
}

impl Estate {
    /// The one in this directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Makes the directory, and takes away what was begun in it and never became a machine.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn prepare(&self) -> io::Result<()> {
        make_dir(&self.dir.join("machines"))?;
        for entry in fs::read_dir(self.dir.join("machines"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(HIDDEN) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Says what is offered.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn offer(&self, offers: &[Offered]) -> io::Result<()> {
        write_json(&self.dir.join("offers.json"), &offers)
    }

    /// All machines, those first that were asked for first.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn machines(&self) -> io::Result<Vec<Rented>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.dir.join("machines"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            found.extend(self.machine(&name));
        }
        found.sort_by_cached_key(|rented| {
            (rented.wish.as_ref().map(|wish| wish.asked_at), rented.name.clone())
        });
        Ok(found)
    }

    /// The script that a machine boots with.
    #[must_use]
    pub fn boot(&self, name: &str) -> PathBuf {
        self.place(name).join("boot")
    }

    /// Says what a machine does.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn tell(&self, name: &str, told: &Told) -> io::Result<()> {
        write_json(&self.place(name).join("told.json"), told)
    }

    /// A machine is no more.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn forget(&self, name: &str) -> io::Result<()> {
        let hidden = self.place(&format!("{HIDDEN}gone-{name}"));
        if self.place(name).exists() {
            fs::rename(self.place(name), &hidden)?;
        }
        if hidden.exists() { fs::remove_dir_all(hidden) } else { Ok(()) }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.dir.join("machines").join(name)
    }

    fn machine(&self, name: &str) -> Option<Rented> {
        let place = self.place(name);
        let is_there = !name.starts_with(HIDDEN) && place.is_dir();
        is_there.then(|| Rented {
            name: name.to_owned(),
            wish: read_json(&place.join("wish.json")),
            is_returned: place.join("returned").exists(),
            told: read_json(&place.join("told.json")),
        })
    }

    /// Makes a machine in one step: it is there whole, or not at all.
    fn make(&self, name: &str, wish: &Wish, boot: &str) -> io::Result<()> {
        let hidden = self.place(&format!("{HIDDEN}new-{name}"));
        if hidden.exists() {
            fs::remove_dir_all(&hidden)?;
        }
        make_dir(&hidden)?;
        write(&hidden.join("boot"), boot.as_bytes())?;
        write_json(&hidden.join("wish.json"), wish)?;
        match fs::rename(&hidden, self.place(name)) {
            // It was made before; asking again makes no other.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(hidden),
            done => done,
        }
    }
}

/// The local cloud as it is rented from.
pub struct Local {
    estate: Estate,
}

impl Local {
    /// The one whose estate is this directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { estate: Estate::new(dir) }
    }

    fn offered(&self) -> Result<Vec<Offered>, CloudError> {
        let text = fs::read(self.estate.dir.join("offers.json")).map_err(|error| nothing_done(&error))?;
        serde_json::from_slice(&text).map_err(|_| CloudError::new(Kind::Malformed, "offers.json", ""))
    }

    fn machines(&self) -> Result<Vec<Rented>, CloudError> {
        self.estate.machines().map_err(|error| nothing_done(&error))
    }

    fn create(&self, launch: &Launch, now: Timestamp) -> Result<CloudId, CloudError> {
        let name = launch.tag.to_string();
        let id = id(&name)?;
        let (offers, machines) = (self.offered()?, self.machines()?);
        let is_it = |offer: &&Offered| (&offer.id, &offer.region) == (&launch.offer.id, &launch.offer.region);
        let refused = |kind, words| Err(CloudError::new(kind, "launch", words));
        let Some(offer) = offers.iter().find(is_it) else {
            return refused(Kind::OutOfStock, "it is not offered");
        };
        if offer.price > launch.price_max {
            return refused(Kind::PriceRise, "it costs more than it may");
        }
        if left(offer, &machines) == 0 && machines.iter().all(|rented| rented.name != name) {
            return refused(Kind::OutOfStock, "all of this machine's parts are rented");
        }
        let wish = Wish {
            offer: offer.id.clone(),
            region: offer.region.clone(),
            price: offer.price,
            asked_at: now,
            dead_man: launch.dead_man,
        };
        self.estate.make(&name, &wish, launch.boot.reveal()).map_err(|error| nothing_done(&error))?;
        Ok(id)
    }

    fn give_back(&self, id: &CloudId) -> Result<(), CloudError> {
        match write(&self.estate.place(id.as_str()).join("returned"), b"") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(CloudError::new(Kind::NotFound, "delete", "there is no such machine"))
            }
            done => done.map_err(|error| nothing_done(&error)),
        }
    }
}

impl Provider for Local {
    fn cloud(&self) -> Cloud {
        Cloud::Local
    }

    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>> {
        Box::pin(async move {
            let (offers, machines) = (self.offered()?, self.machines()?);
            Ok(offers.iter().map(|offer| cloud_offer(offer, left(offer, &machines), now)).collect())
        })
    }

    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId> {
        Box::pin(async move { self.create(launch, now) })
    }

    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>> {
        Box::pin(async move { self.estate.machine(id.as_str()).map(machine).transpose() })
    }

    fn list_ours(&self) -> Answer<'_, Vec<Machine>> {
        Box::pin(async move { self.machines()?.into_iter().map(machine).collect() })
    }

    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()> {
        Box::pin(async move { self.give_back(id) })
    }
}

/// How many more machines can be had.
fn left(offer: &Offered, machines: &[Rented]) -> u32 {
    offer.count.saturating_sub(u32::try_from(machines.len()).unwrap_or(u32::MAX))
}

/// Of no class of the catalogue: what is made up is no price that others are measured by.
fn cloud_offer(offer: &Offered, left: u32, now: Timestamp) -> CloudOffer {
    CloudOffer {
        cloud: Cloud::Local,
        id: offer.id.clone(),
        region: offer.region.clone(),
        model: offer.model.clone(),
        class: None,
        devices: offer.devices,
        vram_each: offer.vram_each,
        cpu: offer.cpu,
        memory: offer.memory,
        disk: offer.disk,
        price: offer.price,
        billing: Cloud::Local.terms().billing,
        availability: if left == 0 { Availability::SoldOut } else { Availability::Available(Some(left)) },
        fetched_at: now,
        raw: payload(&serde_json::to_string(offer).unwrap_or_default()),
    }
}

fn machine(rented: Rented) -> Result<Machine, CloudError> {
    let state = match rented.told.as_ref().map(|told| told.does) {
        Some(_) | None if rented.is_returned => MachineState::Deleting,
        Some(Does::Runs) => MachineState::Running,
        Some(Does::Failed) => MachineState::Failed,
        Some(Does::Boots) | None => MachineState::Starting,
    };
    let machine = shapes::machine(id(&rented.name)?, Some(rented.name), state);
    Ok(Machine {
        address: shapes::address(rented.told.and_then(|told| told.address)),
        created_at: rented.wish.as_ref().map(|wish| wish.asked_at),
        price: rented.wish.map(|wish| wish.price),
        ..machine
    })
}

fn id(name: &str) -> Result<CloudId, CloudError> {
    CloudId::new(name).ok_or_else(|| CloudError::new(Kind::Malformed, "name", "no name of a machine"))
}

/// Nothing is done by halves here.
fn nothing_done(error: &io::Error) -> CloudError {
    CloudError::new(Kind::NotSent, "directory", &error.to_string())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Writes a file beside its place and moves it there: whoever reads it reads all of it.
fn write_json(file: &Path, value: &impl Serialize) -> io::Result<()> {
    let fresh = file.with_extension("new");
    write(&fresh, &serde_json::to_vec_pretty(value)?)?;
    fs::rename(fresh, file)
}

/// A file that its owner alone may read.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?.write_all(bytes)
}
