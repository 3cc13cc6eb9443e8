//! Hyperstack: sizes and stock in one list, prices per GPU in another, environments per region.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{MicroUsd, Timestamp};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    Settings,
    shapes::{self, Number, Pieces, times},
};
use crate::{
    classes::class_of,
    error::CloudError,
    http::{Api, Method, if_found, malformed, of_launch, read},
    money::dollars,
    provider::{Answer, Availability, Cloud, CloudId, CloudOffer, Launch, Machine, MachineState, Provider},
    secret::payload,
};

/// Machines in one page of a list.
const PAGE: usize = 100;
/// More pages than any account has; what goes on beyond is not a list.
const PAGES_MAX: usize = 50;

pub struct Hyperstack {
    pub api: Api,
    pub settings: Settings,
}

#[derive(Deserialize)]
struct Flavors {
    data: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    flavors: Pieces,
}

#[derive(Deserialize)]
struct Flavor {
    name: String,
    region_name: String,
    #[serde(default)]
    gpu: Option<String>,
    gpu_count: Number,
    #[serde(default)]
    cpu: Number,
    #[serde(default)]
    ram: Number,
    #[serde(default)]
    disk: Number,
    #[serde(default)]
    stock_available: bool,
}

#[derive(Deserialize)]
struct Price {
    name: String,
    value: Box<RawValue>,
}

#[derive(Deserialize)]
struct One {
    #[serde(rename = "instance")]
    machine: Info,
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
    floating_ip: Option<String>,
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    flavor: Option<Sized>,
}

#[derive(Deserialize)]
struct Sized {
    #[serde(default)]
    gpu: Option<String>,
    #[serde(default)]
    gpu_count: Number,
}

type Prices = BTreeMap<String, MicroUsd>;

fn state(word: &str) -> MachineState {
    match word {
        "CREATING" | "BUILD" | "STARTING" | "REBOOT" | "REBOOTING" | "HARD_REBOOT" => MachineState::Starting,
        "ACTIVE" => MachineState::Running,
        "SHUTOFF" | "STOPPING" | "HIBERNATED" | "HIBERNATING" | "SHELVED" | "SHELVED_OFFLOADED" => {
            MachineState::Stopped
        }
        "ERROR" => MachineState::Failed,
        "DELETING" => MachineState::Deleting,
        "DELETED" => MachineState::Gone,
        _ => MachineState::Unknown,
    }
}

impl Info {
    fn machine(self, prices: &Prices) -> Result<Machine, CloudError> {
        let machine = shapes::machine(shapes::id(&self.id)?, self.name, state(&self.status));
        let price =
            self.flavor.and_then(|sized| times(*prices.get(&sized.gpu?)?, shapes::count(&sized.gpu_count)));
        Ok(Machine {
            address: shapes::address(self.floating_ip),
            created_at: shapes::time(self.created_at.as_deref()),
            price,
            ..machine
        })
    }
}

fn offer_of(flavor: &Flavor, raw: &str, prices: &Prices, now: Timestamp) -> Option<CloudOffer> {
    // Spot machines have the same shape and another promise.
    let is_spot = |name: &str| name.ends_with("-spot");
    let model =
        flavor.gpu.clone().filter(|gpu| !gpu.is_empty() && !is_spot(gpu) && !is_spot(&flavor.name))?;
    let class = class_of(&model, None);
    let devices = shapes::count(&flavor.gpu_count);
    Some(CloudOffer {
        cloud: Cloud::Hyperstack,
        id: flavor.name.clone(),
        region: flavor.region_name.clone(),
        class,
        devices,
        vram_each: shapes::vram(&model, class),
        cpu: shapes::cpu(&flavor.cpu),
        memory: shapes::gib(&flavor.ram),
        disk: shapes::gib(&flavor.disk),
        price: times(*prices.get(&model)?, devices)?,
        billing: Cloud::Hyperstack.terms().billing,
        availability: if flavor.stock_available {
            Availability::Available(None)
        } else {
            Availability::SoldOut
        },
        fetched_at: now,
        raw: payload(raw),
        model,
    })
}

impl Hyperstack {
    async fn prices(&self) -> Result<Prices, CloudError> {
        let pieces: Pieces = self.api.get("/pricebook").await?;
        Ok(shapes::readable::<Price>(&pieces)
            .filter_map(|(price, _)| Some((price.name, dollars(&price.value)?)))
            .collect())
    }

    async fn create(&self, launch: &Launch, now: Timestamp) -> Result<CloudId, CloudError> {
        let script = super::with_dead_man(&launch.boot, now, launch.dead_man);
        let name = launch.tag.to_string();
        let body = json!({
            "name": name,
            "environment_name": format!("default-{}", launch.offer.region),
            "image_name": self.settings.image,
            "flavor_name": launch.offer.id,
            "key_name": self.settings.ssh_key,
            "count": 1,
            "assign_floating_ip": true,
            "user_data": script.reveal(),
            "labels": [name],
        });
        let reply =
            self.api.send(Method::POST, "/core/virtual-machines", Some(body)).await.map_err(of_launch)?;
        let launched: List = read(&reply)?;
        let first: Vec<Info> = shapes::all(&launched.machines)?;
        let first = first.into_iter().next().ok_or_else(|| malformed("a launch without a machine"))?;
        shapes::id(&first.id)
    }

    async fn list(&self) -> Result<Vec<Machine>, CloudError> {
        let (mut machines, mut seen) = (Vec::new(), BTreeSet::new());
        for page in 1..=PAGES_MAX {
            let list: List =
                self.api.get(&format!("/core/virtual-machines?page={page}&pageSize={PAGE}")).await?;
            let infos: Vec<Info> = shapes::all(&list.machines)?;
            let is_last = infos.len() < PAGE;
            let before = seen.len();
            for info in infos {
                if seen.insert(shapes::id(&info.id)?) {
                    machines.push(info);
                }
            }
            // Where there are no pages, each of them is the whole list.
            if is_last || seen.len() == before {
                let prices = if machines.is_empty() { Prices::new() } else { self.prices().await? };
                return machines.into_iter().map(|info| info.machine(&prices)).collect();
            }
        }
        Err(malformed("a list without an end"))
    }
}

impl Provider for Hyperstack {
    fn cloud(&self) -> Cloud {
        Cloud::Hyperstack
    }

    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>> {
        Box::pin(async move {
            let flavors: Flavors = self.api.get("/core/flavors").await?;
            let prices = self.prices().await?;
            let groups = flavors.data.iter().flat_map(|group| shapes::readable::<Flavor>(&group.flavors));
            Ok(groups.filter_map(|(flavor, raw)| offer_of(&flavor, raw, &prices, now)).collect())
        })
    }

    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId> {
        Box::pin(self.create(launch, now))
    }

    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>> {
        Box::pin(async move {
            let found = if_found(self.api.get::<One>(&format!("/core/virtual-machines/{id}")).await)?;
            found.map(|found| found.machine.machine(&Prices::new())).transpose()
        })
    }

    fn list_ours(&self) -> Answer<'_, Vec<Machine>> {
        Box::pin(self.list())
    }

    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()> {
        Box::pin(async move {
            self.api.send(Method::DELETE, &format!("/core/virtual-machines/{id}"), None).await.map(drop)
        })
    }
}
