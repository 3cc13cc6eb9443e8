//! Lambda: prices in cents, one launch every twelve seconds, and exactly one SSH key.

use std::collections::BTreeMap;

use nave_domain::Timestamp;
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    Settings,
    shapes::{self, Named, Number, Pieces},
};
use crate::{
    classes::class_of,
    error::CloudError,
    http::{Api, Method, if_found, malformed, of_launch, read},
    money::cents,
    provider::{Answer, Availability, Cloud, CloudId, CloudOffer, Launch, Machine, MachineState, Provider},
    secret::payload,
};

pub struct Lambda {
    pub api: Api,
    pub settings: Settings,
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "instance_type")]
    kind: Kind,
    #[serde(rename = "regions_with_capacity_available")]
    regions: Vec<Named>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    gpu_description: Option<String>,
    price_cents_per_hour: Box<RawValue>,
    #[serde(default)]
    specs: Specs,
}

#[derive(Default, Deserialize)]
struct Specs {
    #[serde(default)]
    vcpus: Number,
    #[serde(default)]
    memory_gib: Number,
    #[serde(default)]
    storage_gib: Number,
    #[serde(default)]
    gpus: Number,
}

#[derive(Deserialize)]
struct Info {
    id: Box<RawValue>,
    #[serde(default)]
    name: Option<String>,
    status: String,
    #[serde(default)]
    ip: Option<String>,
    #[serde(default, rename = "instance_type")]
    kind: Option<Priced>,
}

#[derive(Deserialize)]
struct Priced {
    #[serde(default)]
    price_cents_per_hour: Number,
}

#[derive(Deserialize)]
struct Launched {
    #[serde(rename = "instance_ids")]
    ids: Pieces,
}

fn state(word: &str) -> MachineState {
    match word {
        "booting" => MachineState::Starting,
        "active" => MachineState::Running,
        "unhealthy" => MachineState::Failed,
        "terminating" => MachineState::Deleting,
        "terminated" | "preempted" => MachineState::Gone,
        _ => MachineState::Unknown,
    }
}

impl Info {
    fn machine(self) -> Result<Machine, CloudError> {
        let machine = shapes::machine(shapes::id(&self.id)?, self.name, state(&self.status));
        let price = self.kind.and_then(|kind| kind.price_cents_per_hour).as_deref().and_then(cents);
        Ok(Machine { address: shapes::address(self.ip), price, ..machine })
    }
}

fn offers_of(name: &str, entry: &Entry, raw: &str, now: Timestamp) -> Vec<CloudOffer> {
    let Some(price) = cents(&entry.kind.price_cents_per_hour) else { return Vec::new() };
    // Only the description says what kind of GPU it is, and how much memory that has.
    let words =
        entry.kind.gpu_description.clone().or_else(|| entry.kind.description.clone()).unwrap_or_default();
    let model = words.split_once("x ").map_or(words.as_str(), |(count, rest)| {
        if count.bytes().all(|byte| byte.is_ascii_digit()) { rest } else { words.as_str() }
    });
    let specs = &entry.kind.specs;
    let class = class_of(model, None);
    let offer = CloudOffer {
        cloud: Cloud::Lambda,
        id: name.to_owned(),
        region: String::new(),
        model: model.to_owned(),
        class,
        devices: shapes::count(&specs.gpus),
        vram_each: shapes::vram(model, class),
        cpu: shapes::cpu(&specs.vcpus),
        memory: shapes::gib(&specs.memory_gib),
        disk: shapes::gib(&specs.storage_gib),
        price,
        billing: Cloud::Lambda.terms().billing,
        availability: Availability::Available(None),
        fetched_at: now,
        raw: payload(raw),
    };
    shapes::in_each(&entry.regions, offer)
}

impl Lambda {
    async fn create(&self, launch: &Launch, now: Timestamp) -> Result<CloudId, CloudError> {
        let script = super::with_dead_man(&launch.boot, now, launch.dead_man);
        let mut body = json!({
            "region_name": launch.offer.region,
            "instance_type_name": launch.offer.id,
            "ssh_key_names": [self.settings.ssh_key],
            "name": launch.tag.to_string(),
            "user_data": script.reveal(),
        });
        if !self.settings.image.is_empty() {
            body["image"] = json!({ "family": self.settings.image });
        }
        let path = "/instance-operations/launch";
        let reply = self.api.send(Method::POST, path, Some(body)).await.map_err(of_launch)?;
        let launched: Data<Launched> = read(&reply)?;
        let first = launched.data.ids.first().ok_or_else(|| malformed("a launch without an id"))?;
        shapes::id(first)
    }
}

impl Provider for Lambda {
    fn cloud(&self) -> Cloud {
        Cloud::Lambda
    }

    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>> {
        Box::pin(async move {
            let types: Data<BTreeMap<String, Box<RawValue>>> = self.api.get("/instance-types").await?;
            let types = types.data.iter().filter_map(|(name, raw)| {
                let entry = serde_json::from_str::<Entry>(raw.get()).ok()?;
                Some(offers_of(name, &entry, raw.get(), now))
            });
            Ok(types.flatten().collect())
        })
    }

    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId> {
        Box::pin(self.create(launch, now))
    }

    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>> {
        Box::pin(async move {
            let found = if_found(self.api.get::<Data<Info>>(&format!("/instances/{id}")).await)?;
            found.map(|found| found.data.machine()).transpose()
        })
    }

    fn list_ours(&self) -> Answer<'_, Vec<Machine>> {
        Box::pin(async move {
            let list: Data<Pieces> = self.api.get("/instances").await?;
            shapes::all::<Info>(&list.data)?.into_iter().map(Info::machine).collect()
        })
    }

    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()> {
        Box::pin(async move {
            let body = json!({ "instance_ids": [id.as_str()] });
            self.api.send(Method::POST, "/instance-operations/terminate", Some(body)).await.map(drop)
        })
    }
}
