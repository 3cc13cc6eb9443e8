//! Simulated GPUs of local hosts: a file for each host, which its agent reads.
//!
//! It is made once, so that the devices stay the same, and never changed: whoever wants other
//! devices, dishonest ones among them, puts a file of their own there before the market
//! starts. `nave-prover` documents what stands in it.

use std::{fs, path::Path, str::FromStr};

use anyhow::Context as _;
use nave_domain::{
    Bytes,
    host::{DEVICES_MAX, Device, TEXT_MAX},
};
use nave_sdk::wire::sign::random;
use serde_json::Value;

use super::{layout::write_whole, progress};
use crate::bench::calibrate::simulated;

/// The simulated devices of each local host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedDevices {
    count: usize,
    /// What they are called; none for the usual ones.
    model: Option<String>,
}

impl FromStr for SimulatedDevices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (count, model) = text.split_once('x').map_or((text, None), |(count, model)| (count, Some(model)));
        let count = count.parse().ok().filter(|count| (1..=DEVICES_MAX).contains(count));
        let is_named =
            |model: &str| (1..=TEXT_MAX).contains(&model.len()) && !model.contains(char::is_control);
        match count {
            Some(count) if model.is_none_or(is_named) => Ok(Self { count, model: model.map(str::to_owned) }),
            Some(_) | None => {
                Err(format!("a number from 1 to {DEVICES_MAX}, or that, an x and a model, such as 2xH100"))
            }
        }
    }
}

impl SimulatedDevices {
    /// Writes a host's file, where there is none yet.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn ensure(&self, file: &Path) -> anyhow::Result<()> {
        if file.exists() {
            let kept =
                fs::read(file).ok().and_then(|bytes| serde_json::from_slice::<Vec<Value>>(&bytes).ok());
            if kept.is_none_or(|kept| kept.len() != self.count) {
                progress(&format!("{} is there and stays as it is; remove it for others", file.display()));
            }
            return Ok(());
        }
        let devices = (0..self.count).map(|_| self.device()).collect::<anyhow::Result<Vec<_>>>()?;
        write_whole(file, &serde_json::to_vec_pretty(&devices)?)
            .with_context(|| format!("write {}", file.display()))
    }

    /// How many there are, what each is called, and its memory.
    pub fn described(&self) -> (u32, String, Option<Bytes>) {
        let model = simulated();
        let count = u32::try_from(self.count).unwrap_or(u32::MAX);
        (count, self.model.clone().unwrap_or(model.model), Some(model.vram))
    }

    /// One that the bands of the catalogue's class `simulated` were measured with, perhaps under another name.
    fn device(&self) -> anyhow::Result<Value> {
        let mut model = simulated();
        model.model = self.model.clone().unwrap_or(model.model);
        let mut entry = serde_json::to_value(model).context("write a device as JSON")?;
        entry["uuid"] = format!("{}{}", Device::SIMULATED, hex::encode(random::<16>()?)).into();
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_and_may_be_named() {
        let read = |text: &str| text.parse::<SimulatedDevices>();
        assert_eq!(read("2"), Ok(SimulatedDevices { count: 2, model: None }));
        let named = SimulatedDevices { count: 8, model: Some("NVIDIA GTX x9".into()) };
        assert_eq!(read("8xNVIDIA GTX x9"), Ok(named));
        for text in ["", "0", "65", "x", "2x", "-1", "H100", "1x\u{7}"] {
            assert!(read(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_hosts_devices_stay_the_same_and_are_nobody_elses() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, two) = (dir.path().join("1.json"), dir.path().join("2.json"));
        let devices = SimulatedDevices { count: 2, model: None };
        for file in [&one, &two] {
            devices.ensure(file).expect("written");
        }
        let written = fs::read_to_string(&one).expect("read");
        assert_ne!(written, fs::read_to_string(&two).expect("read"));
        devices.ensure(&one).expect("it is there");
        assert_eq!(fs::read_to_string(&one).expect("read"), written);
        let listed: Vec<Value> = serde_json::from_str(&written).expect("JSON");
        assert!(listed.len() == 2 && listed[0]["uuid"].as_str().expect("text").starts_with("SIM-"));
    }
}
