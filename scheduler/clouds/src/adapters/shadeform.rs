//! Shadeform: one key for many clouds, prices in cents, and a dead-man switch.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nave_domain::Timestamp;
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    Settings,
    shapes::{self, Number, Pieces},
};
use crate::{
    classes::class_of,
    error::CloudError,
    http::{Api, Method, if_found, malformed, of_launch, read},
    money::cents,
    provider::{Answer, Availability, Cloud, CloudId, CloudOffer, Launch, Machine, MachineState, Provider},
    secret::payload,
};

pub struct Shadeform {
    pub api: Api,
    pub settings: Settings,
}

#[derive(Deserialize)]
struct Types {
    #[serde(rename = "instance_types")]
    types: Pieces,
}

#[derive(Deserialize)]
struct Type {
    cloud: String,
    #[serde(rename = "shade_instance_type")]
    kind: String,
    hourly_price: Box<RawValue>,
    #[serde(default)]
    deployment_type: Option<String>,
    configuration: Configuration,
    availability: Vec<Place>,
}

#[derive(Deserialize)]
struct Configuration {
    gpu_type: String,
    #[serde(default)]
    interconnect: Option<String>,
    num_gpus: Number,
    #[serde(default)]
    vcpus: Number,
    #[serde(default)]
    memory_in_gb: Number,
    #[serde(default)]
    storage_in_gb: Number,
    #[serde(default)]
    vram_per_gpu_in_gb: Number,
}

#[derive(Deserialize)]
struct Place {
    region: String,
    available: bool,
}

#[derive(Deserialize)]
struct List {
    #[serde(rename = "instances")]
    machines: Pieces,
}

#[derive(Deserialize)]
struct Info {
    id: Box<RawValue>,
    #[serde(default)]
    name: Option<String>,
    status: String,
    #[serde(default)]
    ip: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    hourly_price: Number,
}

#[derive(Deserialize)]
struct Created {
    id: Box<RawValue>,
}

fn state(word: &str) -> MachineState {
    match word {
        "creating" | "pending_provider" | "pending" => MachineState::Starting,
        "active" => MachineState::Running,
        "error" => MachineState::Failed,
        "deleting" => MachineState::Deleting,
        "deleted" => MachineState::Gone,
        _ => MachineState::Unknown,
    }
}

impl Info {
    fn machine(self) -> Result<Machine, CloudError> {
        let machine = shapes::machine(shapes::id(&self.id)?, self.name, state(&self.status));
        Ok(Machine {
            address: shapes::address(self.ip),
            created_at: shapes::time(self.created_at.as_deref()),
            price: self.hourly_price.as_deref().and_then(cents),
            ..machine
        })
    }
}

fn offers_of(found: &Type, raw: &str, now: Timestamp) -> Vec<CloudOffer> {
    let is_machine = found.deployment_type.as_deref().is_none_or(|kind| kind == "vm" || kind == "baremetal");
    let Some(price) = cents(&found.hourly_price).filter(|_| is_machine) else { return Vec::new() };
    let of = &found.configuration;
    let model = format!("{} {}", of.gpu_type, of.interconnect.as_deref().unwrap_or_default());
    let vram_each = shapes::some_gib(&of.vram_per_gpu_in_gb);
    let offer = |place: &Place| CloudOffer {
        cloud: Cloud::Shadeform,
        id: format!("{}/{}", found.cloud, found.kind),
        region: place.region.clone(),
        model: model.trim().to_owned(),
        class: class_of(&model, vram_each),
        devices: shapes::count(&of.num_gpus),
        vram_each,
        cpu: shapes::cpu(&of.vcpus),
        memory: shapes::gib(&of.memory_in_gb),
        disk: shapes::gib(&of.storage_in_gb),
        price,
        billing: Cloud::Shadeform.terms().billing,
        availability: if place.available { Availability::Available(None) } else { Availability::SoldOut },
        fetched_at: now,
        raw: payload(raw),
    };
    found.availability.iter().map(offer).collect()
}

impl Shadeform {
    async fn create(&self, launch: &Launch, now: Timestamp) -> Result<CloudId, CloudError> {
        let script = super::with_dead_man(&launch.boot, now, launch.dead_man);
        let (cloud, kind) = launch.offer.id.split_once('/').ok_or_else(|| malformed("an offer's id"))?;
        // What it may cost until then, in dollars with the cents rounded up.
        let hours = (launch.dead_man.since(now).0 + 3_599_999) / 3_600_000;
        let cents = launch.price_max.0.saturating_mul(hours).saturating_add(9_999) / 10_000;
        let name = launch.tag.to_string();
        let mut body = json!({
            "cloud": cloud,
            "region": launch.offer.region,
            "shade_instance_type": kind,
            "shade_cloud": true,
            "name": name,
            "os": self.settings.image,
            "launch_configuration": {
                "type": "script",
                "script_configuration": { "base64_script": STANDARD.encode(script.reveal()) },
            },
            "auto_delete": {
                "date_threshold": launch.dead_man.to_string(),
                "spend_threshold": format!("{}.{:02}", cents / 100, cents % 100),
            },
            "tags": [name],
        });
        if !self.settings.ssh_key.is_empty() {
            body["ssh_key_id"] = self.settings.ssh_key.clone().into();
        }
        let reply = self.api.send(Method::POST, "/instances/create", Some(body)).await.map_err(of_launch)?;
        shapes::id(&read::<Created>(&reply)?.id)
    }
}

impl Provider for Shadeform {
    fn cloud(&self) -> Cloud {
        Cloud::Shadeform
    }

    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>> {
        Box::pin(async move {
            let types: Types = self.api.get("/instances/types").await?;
            Ok(shapes::readable::<Type>(&types.types)
                .flat_map(|(found, raw)| offers_of(&found, raw, now))
                .collect())
        })
    }

    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId> {
        Box::pin(self.create(launch, now))
    }

    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>> {
        Box::pin(async move {
            let found = if_found(self.api.get::<Info>(&format!("/instances/{id}/info")).await)?;
            found.map(Info::machine).transpose()
        })
    }

    fn list_ours(&self) -> Answer<'_, Vec<Machine>> {
        Box::pin(async move {
            let list: List = self.api.get("/instances").await?;
            shapes::all::<Info>(&list.machines)?.into_iter().map(Info::machine).collect()
        })
    }

    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()> {
        Box::pin(async move {
            self.api.send(Method::POST, &format!("/instances/{id}/delete"), None).await.map(drop)
        })
    }
}
