//! Verda, formerly DataCrunch: a token for each session, prices as decimal strings, and a start-up script
//! that must be stored there before a machine can boot it.

use std::sync::{Mutex, PoisonError};

use nave_domain::{Bytes, MicroUsd, Timestamp};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};

use super::{
    Settings,
    shapes::{self, Number, Pieces},
};
use crate::{
    classes::class_of,
    error::{CloudError, Kind},
    http::{Api, Method, Reply, if_found, malformed, of_launch, read},
    money::dollars,
    provider::{Answer, Availability, Cloud, CloudId, CloudOffer, Launch, Machine, MachineState, Provider},
    secret::{Secret, payload},
};

/// The disk that a machine is launched with, in GB: it has none of its own.
const DISK_GB: i64 = 200;
/// What that costs in an hour beside the machine: 0.20 USD for a GB and a month, as others have been billed.
const DISK_PRICE: MicroUsd = MicroUsd(55_000);

pub struct Verda {
    api: Api,
    settings: Settings,
    /// The session, until the cloud says that it is over.
    token: Mutex<Option<Secret>>,
}

#[derive(Deserialize)]
struct Session {
    access_token: String,
}

#[derive(Deserialize)]
struct Type {
    #[serde(rename = "instance_type")]
    name: String,
    price_per_hour: Box<RawValue>,
    #[serde(default)]
    currency: Option<String>,
    #[serde(default)]
    cpu: Part,
    gpu: Part,
    #[serde(default)]
    memory: Part,
    #[serde(default)]
    gpu_memory: Part,
}

#[derive(Default, Deserialize)]
struct Part {
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    number_of_cores: Number,
    #[serde(default)]
    number_of_gpus: Number,
    #[serde(default)]
    size_in_gigabytes: Number,
}

#[derive(Deserialize)]
struct Place {
    location_code: String,
    availabilities: Vec<String>,
}

#[derive(Deserialize)]
struct Info {
    id: Box<RawValue>,
    #[serde(default)]
    hostname: Option<String>,
    status: String,
    #[serde(default)]
    ip: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    price_per_hour: Number,
    #[serde(default)]
    startup_script_id: Option<String>,
    #[serde(default)]
    os_volume_id: Option<String>,
}

fn state(word: &str) -> MachineState {
    match word {
        "ordered" | "new" | "validating" | "provisioning" | "restoring" => MachineState::Starting,
        "running" => MachineState::Running,
        "offline" | "starting_hibernation" | "hibernating" => MachineState::Stopped,
        "error" | "no_capacity" | "installation_failed" => MachineState::Failed,
        "deleting" => MachineState::Deleting,
        "deleted" | "discontinued" | "notfound" => MachineState::Gone,
        _ => MachineState::Unknown,
    }
}

impl Info {
    fn machine(self) -> Result<Machine, CloudError> {
        let machine = shapes::machine(shapes::id(&self.id)?, self.hostname, state(&self.status));
        Ok(Machine {
            address: shapes::address(self.ip),
            created_at: shapes::time(self.created_at.as_deref()),
            price: self.price_per_hour.as_deref().and_then(dollars).and_then(with_disk),
            ..machine
        })
    }
}

/// The price of a machine with its disk, unless that is more than fits.
fn with_disk(price: MicroUsd) -> Option<MicroUsd> {
    price.0.checked_add(DISK_PRICE.0).map(MicroUsd)
}

fn offers_of(found: &Type, raw: &str, places: &[Place], now: Timestamp) -> Vec<CloudOffer> {
    let devices = shapes::count(&found.gpu.number_of_gpus);
    let in_dollars = found.currency.as_deref().is_none_or(|currency| currency == "usd");
    let price = dollars(&found.price_per_hour).filter(|_| in_dollars && devices > 0);
    let Some(price) = price.and_then(with_disk) else { return Vec::new() };
    let description = found.gpu.description.clone().unwrap_or_default();
    let model = description.split_once("x ").map_or(description.as_str(), |(_, rest)| rest);
    // What it calls the memory of the GPU is that of all of them.
    let vram_each =
        shapes::some_gib(&found.gpu_memory.size_in_gigabytes).map(|all| Bytes(all.0 / i64::from(devices)));
    let offer = |place: &Place| CloudOffer {
        cloud: Cloud::Verda,
        id: found.name.clone(),
        region: place.location_code.clone(),
        model: model.to_owned(),
        class: class_of(model, vram_each),
        devices,
        vram_each,
        cpu: shapes::cpu(&found.cpu.number_of_cores),
        memory: shapes::gib(&found.memory.size_in_gigabytes),
        disk: Bytes(DISK_GB * Bytes::GIB),
        price,
        billing: Cloud::Verda.terms().billing,
        availability: if place.availabilities.contains(&found.name) {
            Availability::Available(None)
        } else {
            Availability::SoldOut
        },
        fetched_at: now,
        raw: payload(raw),
    };
    places.iter().map(offer).collect()
}

impl Verda {
    pub fn new(api: Api, settings: Settings) -> Self {
        Self { api, settings, token: Mutex::new(None) }
    }

    async fn session(&self) -> Result<Secret, CloudError> {
        let held = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(token) = held {
            return Ok(token);
        }
        let body = json!({
            "grant_type": "client_credentials",
            "client_id": self.settings.key_id,
            "client_secret": self.settings.key.reveal(),
        });
        // No call of ours has been made yet: whatever went wrong here launched nothing.
        let unmade = |error: CloudError| match error.kind.is_settled() {
            true => error,
            false => CloudError { kind: Kind::NotSent, ..error },
        };
        let reply = self.api.send(Method::POST, "/oauth2/token", Some(body)).await.map_err(unmade)?;
        let session: Session = read(&reply).map_err(unmade)?;
        let token = Secret::new(format!("Bearer {}", session.access_token));
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(token)
    }

    /// A call in a session; a session that is over is begun again once, for it did nothing.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Reply, CloudError> {
        for last in [false, true] {
            let token = self.session().await?;
            let sent =
                self.api.send_as(Some(("authorization", token)), method.clone(), path, body.clone()).await;
            match sent {
                Err(error) if error.kind == Kind::Unauthorised && !last => {
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                other => return other,
            }
        }
        Err(CloudError::new(Kind::Unauthorised, "401", "no session"))
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, CloudError> {
        read(&self.call(Method::GET, path, None).await?)
    }

    async fn create(&self, launch: &Launch, now: Timestamp) -> Result<CloudId, CloudError> {
        let script = super::with_dead_man(&launch.boot, now, launch.dead_man);
        let name = launch.tag.to_string();
        let stored = json!({ "name": name, "script": script.reveal() });
        // A script that is stored and not used costs nothing.
        let unmade = |error: CloudError| match error.kind.is_settled() {
            true => error,
            false => CloudError { kind: Kind::NotSent, ..error },
        };
        let stored = self.call(Method::POST, "/scripts", Some(stored)).await.map_err(unmade)?;
        let script_id = plain_id(&stored).map_err(unmade)?;
        let keys: Vec<&str> = self.settings.ssh_key.split(',').filter(|key| !key.is_empty()).collect();
        let body = json!({
            "instance_type": launch.offer.id,
            "image": self.settings.image,
            "ssh_key_ids": keys,
            "startup_script_id": script_id.as_str(),
            "os_volume": { "name": name, "size": DISK_GB },
            "hostname": name,
            "description": name,
            "location_code": launch.offer.region,
            "is_spot": false,
        });
        plain_id(&self.call(Method::POST, "/instances", Some(body)).await.map_err(of_launch)?)
    }

    async fn remove(&self, id: &CloudId) -> Result<(), CloudError> {
        let info = self.read::<Info>(&format!("/instances/{id}")).await.ok();
        let (volume, script) =
            info.map(|info| (info.os_volume_id, info.startup_script_id)).unwrap_or_default();
        let mut body = json!({ "id": [id.as_str()], "action": "delete" });
        // A disk that is not named is deleted too, and first lies in a bin.
        if let Some(volume) = volume.as_deref().and_then(CloudId::new) {
            body["volume_ids"] = json!([volume.as_str()]);
            body["delete_permanently"] = json!(true);
        }
        self.call(Method::PUT, "/instances", Some(body)).await?;
        // The ticket in it has been used or runs out: a script that stays is no harm.
        if let Some(script) = script.as_deref().and_then(CloudId::new) {
            let _ = self.call(Method::DELETE, &format!("/scripts/{script}"), None).await;
        }
        Ok(())
    }
}

/// An id that is the whole answer, with or without quotes.
fn plain_id(reply: &Reply) -> Result<CloudId, CloudError> {
    let text = String::from_utf8_lossy(&reply.body);
    CloudId::new(text.trim().trim_matches('"')).ok_or_else(|| malformed("an answer that is no id"))
}

impl Provider for Verda {
    fn cloud(&self) -> Cloud {
        Cloud::Verda
    }

    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>> {
        Box::pin(async move {
            let types: Pieces = self.read("/instance-types").await?;
            let places: Vec<Place> = self.read("/instance-availability?is_spot=false").await?;
            let read = shapes::readable::<Type>(&types);
            Ok(read.flat_map(|(found, raw)| offers_of(&found, raw, &places, now)).collect())
        })
    }

    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId> {
        Box::pin(self.create(launch, now))
    }

    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>> {
        Box::pin(async move {
            let found = if_found(self.read::<Info>(&format!("/instances/{id}")).await)?;
            found.map(Info::machine).transpose()
        })
    }

    fn list_ours(&self) -> Answer<'_, Vec<Machine>> {
        Box::pin(async move {
            let list: Pieces = self.read("/instances").await?;
            shapes::all::<Info>(&list)?.into_iter().map(Info::machine).collect()
        })
    }

    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()> {
        Box::pin(self.remove(id))
    }
}
