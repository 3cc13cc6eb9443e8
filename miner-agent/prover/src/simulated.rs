//! Simulated devices, as a file lists them.
//!
//! The file is a JSON array with an object for each device, in the order in which they are offered:
//!
//! ```json
//! [{ "uuid": "SIM-00c2a5f1", "model": "Nave Simulated", "vram": 1073741824,
//!    "ops_per_s": 67108864, "bytes_per_s": 524288, "reads_per_s": 131072,
//!    "hashes_per_s": 524288, "return_bytes_per_s": 262144,
//!    "dishonesty": [{ "skip": { "per_mille": 50 } }, { "shared": { "with": "one" } }],
//!    "replays": false, "division": "shares" }]
//! ```
//!
//! Everything but `uuid`, `replays` and `division` (see [`Division`]) is a [`SoftwareModel`], where the ways to
//! deceive are listed; those two and `dishonesty` may be left out. A slice does as much less as it has less of its device's
//! computing, and is a process of its own; its `uuid` begins with `SIM-`, too. A host with a device that replays answers each
//! challenge of its devices after the first with what it answered to that one, which lies
//! beside the file, with `.answers` behind its name.
//!
//! The agent gets the file with `miner-agent run --simulated-devices FILE`. `naved up
//! --simulated-devices` keeps it as `simulated-devices.json` in the directory of each
//! local host (`agent`, `agent-2`, …, below the market's), and leaves one that is there as it is: a
//! test puts its own there before the market starts.

use std::{fs, path::Path};

use nave_domain::{
    fraction::{Division, Slice},
    host::Device,
};
use nave_proof::{
    Failure, Reason, device,
    software::{Sleeping, SoftwareDevice, SoftwareModel, Turns},
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// What the driver of a simulated device is called.
const DRIVER: &str = "simulated";

/// The simulated devices of a host.
#[derive(Debug, Default)]
pub struct Simulated {
    devices: Vec<Entry>,
    turns: Turns,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
struct Entry {
    uuid: String,
    model: SoftwareModel,
    replays: bool,
    division: Division,
}

impl TryFrom<Map<String, Value>> for Entry {
    type Error = String;

    fn try_from(mut fields: Map<String, Value>) -> Result<Self, String> {
        let uuid = match fields.remove("uuid") {
            Some(Value::String(uuid)) if uuid.starts_with(Device::SIMULATED) => uuid,
            _ => return Err(format!("a device needs a uuid that begins with {}", Device::SIMULATED)),
        };
        let replays = match fields.remove("replays") {
            None => false,
            Some(Value::Bool(replays)) => replays,
            Some(_) => return Err(format!("{uuid}: `replays` is neither true nor false")),
        };
        let division = match fields.remove("division").map(serde_json::from_value) {
            None => Division::default(),
            Some(division) => division.map_err(|error| format!("{uuid}: `division`: {error}"))?,
        };
        if division.slices().iter().any(|slice| !slice.uuid.starts_with(Device::SIMULATED)) {
            return Err(format!("{uuid}: a slice needs a uuid that begins with {}", Device::SIMULATED));
        }
        let model = serde_json::from_value(Value::Object(fields));
        Ok(Self { model: model.map_err(|error| format!("{uuid}: {error}"))?, uuid, replays, division })
    }
}

impl Entry {
    /// What computes as this device, or as a slice of it, which does as much less as it is less computing.
    fn part(&self, uuid: &str) -> Option<SoftwareModel> {
        let part = |slice: &Slice| {
            let milli = u64::try_from(slice.milli.0).unwrap_or(0);
            let of = |rate: u64| (rate / 1_000).saturating_mul(milli).max(1);
            let whole = &self.model;
            SoftwareModel {
                vram: slice.vram,
                ops_per_s: of(whole.ops_per_s),
                bytes_per_s: of(whole.bytes_per_s),
                reads_per_s: of(whole.reads_per_s),
                hashes_per_s: of(whole.hashes_per_s),
                return_bytes_per_s: of(whole.return_bytes_per_s),
                ..whole.clone()
            }
        };
        match &self.division {
            Division::Whole | Division::Shares => (self.uuid == uuid).then(|| self.model.clone()),
            Division::Slices(slices) => slices.iter().find(|slice| slice.uuid == uuid).map(part),
        }
    }
}

impl Simulated {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(file: &Path) -> Result<Self, String> {
        let of = |why: String| format!("{}: {why}", file.display());
        let bytes = fs::read(file).map_err(|error| of(error.to_string()))?;
        let devices = serde_json::from_slice(&bytes).map_err(|error| of(error.to_string()))?;
        Ok(Self { devices, turns: Turns::default() })
    }

    /// Whether this is a slice of one of them.
    pub fn is_slice(&self, uuid: &str) -> bool {
        self.devices.iter().any(|entry| entry.division.slices().iter().any(|slice| slice.uuid == uuid))
    }

    /// The devices as the inventory lists them.
    pub fn list(&self) -> impl Iterator<Item = Device> {
        self.devices.iter().map(|Entry { uuid, model, division, .. }| Device {
            uuid: uuid.clone(),
            model: model.model.clone(),
            vram: model.vram,
            driver: DRIVER.to_owned(),
            simulated: true,
            division: division.clone(),
        })
    }

    /// Opens a device or a slice.
    ///
    /// # Errors
    /// [`Reason::DeviceUnavailable`] where the file has no such device, or one that is cut.
    pub fn open(&self, uuid: &str) -> Result<Box<dyn device::Device>, Failure> {
        let model = self.devices.iter().find_map(|entry| entry.part(uuid)).ok_or_else(|| {
            let message = format!("there is no simulated device {uuid}, or it is cut into slices");
            Failure { code: Reason::DeviceUnavailable, message }
        })?;
        Ok(Box::new(SoftwareDevice::new(&model, Box::new(Sleeping), &self.turns)))
    }

    /// Whether this host answers with what it answered before.
    pub fn replays(&self) -> bool {
        self.devices.iter().any(|entry| entry.replays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"[
        { "uuid": "SIM-1", "model": "Nave Simulated", "vram": 1048576, "ops_per_s": 1, "bytes_per_s": 2,
          "reads_per_s": 3, "hashes_per_s": 4, "return_bytes_per_s": 5 },
        { "uuid": "SIM-2", "model": "Other", "vram": 1, "ops_per_s": 1, "bytes_per_s": 1, "reads_per_s": 1,
          "hashes_per_s": 1, "return_bytes_per_s": 1, "dishonesty": [{ "skip": { "per_mille": 50 } }],
          "replays": true }]"#;

    fn read(text: &str) -> Result<Simulated, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), text).expect("written");
        Simulated::read(file.path())
    }

    #[test]
    fn the_devices_of_a_file_are_listed_as_simulated() {
        let simulated = read(FILE).expect("two devices");
        let listed: Vec<Device> = simulated.list().collect();
        assert!(listed.iter().all(|device| device.simulated && device.driver == DRIVER));
        assert_eq!(listed.iter().map(|device| device.uuid.as_str()).collect::<Vec<_>>(), ["SIM-1", "SIM-2"]);
        assert!(simulated.replays());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        for (from, to, says) in [
            ("SIM-2", "GPU-2", "begins with SIM-"),
            ("\"skip\"", "\"slack\"", "SIM-2: unknown variant `slack`"),
            ("\"hashes_per_s\": 4,", "", "SIM-1: missing field `hashes_per_s`"),
            ("\"replays\": true", "\"replays\": 1", "neither true nor false"),
            (
                "\"replays\": true",
                "\"division\": {\"slices\": [{\"uuid\": \"MIG-1\", \"profile\": \"p\", \"milli\": 1, \"vram\": 1}]}",
                "SIM-2: a slice needs a uuid that begins with SIM-",
            ),
            ("\"vram\": 1048576", "\"size\": 1048576", "SIM-1: unknown field `size`"),
        ] {
            let why = read(&FILE.replace(from, to)).expect_err("refused");
            assert!(why.contains(says), "{why}");
        }
    }
}
