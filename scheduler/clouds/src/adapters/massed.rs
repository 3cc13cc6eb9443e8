//! Massed Compute: prices in cents by product. Its answers carry cleartext passwords, which are never read.

use std::collections::BTreeMap;

use nave_domain::{MicroUsd, Timestamp};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    Settings,
    shapes::{self, Named, Number, Pieces},
};
use crate::{
    classes::class_of,
    error::{CloudError, Kind},
    http::{Api, Method, if_found, of_launch, read},
    money::{cents, whole},
    provider::{Answer, Availability, Cloud, CloudId, CloudOffer, Launch, Machine, MachineState, Provider},
    secret::payload,
};

pub struct Massed {
    pub api: Api,
    pub settings: Settings,
}

#[derive(Deserialize)]
struct Inventory {
    gpu_inventory: BTreeMap<String, Box<RawValue>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "instance_type")]
    product: Product,
    #[serde(default, rename = "regions_with_capacity_available")]
    regions: Vec<Named>,
    #[serde(default)]
    capacity_available: Number,
}

#[derive(Deserialize)]
struct Product {
    #[serde(default)]
    description: Option<String>,
    price_cents_per_hour: Box<RawValue>,
    #[serde(default)]
    specs: Specs,
}

#[derive(Default, Deserialize)]
struct Specs {
    #[serde(default)]
    vcpu_count: Number,
    #[serde(default)]
    memory_gib: Number,
    #[serde(default)]
    storage_gb: Number,
}

#[derive(Deserialize)]
struct List {
    #[serde(rename = "runningInstances")]
    machines: Pieces,
}

#[derive(Deserialize)]
struct Info {
    uuid: Box<RawValue>,
    #[serde(default)]
    name: Option<String>,
    status: String,
    #[serde(default)]
    ip: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    product: Option<Named>,
}

#[derive(Deserialize)]
struct Launched {
    response: Box<RawValue>,
}

fn state(word: &str) -> MachineState {
    match word.to_ascii_lowercase().as_str() {
        "rented" | "active" | "running" => MachineState::Running,
        "pending" | "provisioning" | "starting" | "building" | "restarting" => MachineState::Starting,
        "stopping" | "stopped" => MachineState::Stopped,
        "failed" | "error" => MachineState::Failed,
        "terminating" | "deleting" => MachineState::Deleting,
        "terminated" | "deleted" => MachineState::Gone,
        _ => MachineState::Unknown,
    }
}

/// How many GPUs a product such as `gpu_8x_h100_sxm5` has, and which.
fn devices(name: &str) -> Option<(u32, String)> {
    let (count, model) = name.strip_prefix("gpu_")?.split_once("x_")?;
    Some((count.parse().ok()?, model.replace('_', " ")))
}

fn offers_of(name: &str, entry: &Entry, raw: &str, now: Timestamp) -> Vec<CloudOffer> {
    let Some(price) = cents(&entry.product.price_cents_per_hour) else { return Vec::new() };
    // Spot products have the same shape and another promise.
    let Some((devices, model)) = devices(name).filter(|_| !name.ends_with("_spot")) else {
        return Vec::new();
    };
    let left = entry.capacity_available.as_deref().and_then(whole).and_then(|left| u32::try_from(left).ok());
    let class = class_of(&model, None).or_else(|| class_of(entry.product.description.as_deref()?, None));
    let offer = CloudOffer {
        cloud: Cloud::Massed,
        id: name.to_owned(),
        region: String::new(),
        model: model.clone(),
        class,
        devices,
        vram_each: shapes::vram(&model, class),
        cpu: shapes::cpu(&entry.product.specs.vcpu_count),
        memory: shapes::gib(&entry.product.specs.memory_gib),
        disk: shapes::gib(&entry.product.specs.storage_gb),
        price,
        billing: Cloud::Massed.terms().billing,
        availability: if left == Some(0) { Availability::SoldOut } else { Availability::Available(left) },
        fetched_at: now,
        raw: payload(raw),
    };
    shapes::in_each(&entry.regions, offer)
}

impl Massed {
    async fn inventory(&self) -> Result<Vec<(String, Entry, Box<RawValue>)>, CloudError> {
        let inventory: Inventory = self.api.get("/gpu-inventory").await?;
        let entry = |(name, raw): (String, Box<RawValue>)| {
            let entry = serde_json::from_str(raw.get()).ok()?;
            Some((name, entry, raw))
        };
        Ok(inventory.gpu_inventory.into_iter().filter_map(entry).collect())
    }

    async fn create(&self, launch: &Launch, now: Timestamp) -> Result<CloudId, CloudError> {
        let script = super::with_dead_man(&launch.boot, now, launch.dead_man);
        let image = self.settings.image.parse::<u32>();
        let image =
            image.map_err(|_| CloudError::new(Kind::Refused, "image", "the image must be a number"))?;
        let mut body = json!({
            "imageId": image,
            "productName": launch.offer.id,
            "regionName": if launch.offer.region.is_empty() { "any" } else { &launch.offer.region },
            "instanceName": launch.tag.to_string(),
            "command": script.reveal(),
        });
        if !self.settings.ssh_key.is_empty() {
            body["sshKeys"] = json!([self.settings.ssh_key]);
        }
        let reply = self.api.send(Method::POST, "/instance/launch", Some(body)).await.map_err(of_launch)?;
        shapes::id(&read::<Launched>(&reply)?.response)
    }

    /// Machines, with the prices that only the inventory tells.
    async fn priced(&self, machines: &Pieces) -> Result<Vec<Machine>, CloudError> {
        let infos: Vec<Info> = shapes::all(machines)?;
        if infos.is_empty() {
            return Ok(Vec::new());
        }
        let prices: BTreeMap<String, MicroUsd> = self
            .inventory()
            .await?
            .into_iter()
            .filter_map(|(name, entry, _)| Some((name, cents(&entry.product.price_cents_per_hour)?)))
            .collect();
        infos.into_iter().map(|info| machine(info, &prices)).collect()
    }
}

fn machine(info: Info, prices: &BTreeMap<String, MicroUsd>) -> Result<Machine, CloudError> {
    let machine = shapes::machine(shapes::id(&info.uuid)?, info.name, state(&info.status));
    let product = info.product.and_then(|product| product.name);
    Ok(Machine {
        address: shapes::address(info.ip),
        created_at: shapes::time(info.created.as_deref()),
        price: product.and_then(|name| prices.get(&name).copied()),
        ..machine
    })
}

impl Provider for Massed {
    fn cloud(&self) -> Cloud {
        Cloud::Massed
    }

    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>> {
        Box::pin(async move {
            let inventory = self.inventory().await?;
            Ok(inventory
                .iter()
                .flat_map(|(name, entry, raw)| offers_of(name, entry, raw.get(), now))
                .collect())
        })
    }

    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId> {
        Box::pin(self.create(launch, now))
    }

    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>> {
        Box::pin(async move {
            let Some(list) = if_found(self.api.get::<List>(&format!("/instance/{id}")).await)? else {
                return Ok(None);
            };
            // An id that it does not know comes back as an empty list.
            Ok(self.priced(&list.machines).await?.into_iter().find(|machine| machine.id == *id))
        })
    }

    fn list_ours(&self) -> Answer<'_, Vec<Machine>> {
        Box::pin(async move {
            let list: List = self.api.get("/instance").await?;
            self.priced(&list.machines).await
        })
    }

    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()> {
        Box::pin(async move {
            let body = json!({ "instanceUuids": [id.as_str()] });
            self.api.send(Method::POST, "/instance/terminate", Some(body)).await.map(drop)
        })
    }
}
