//! RunPod, second version: containers on GPUs, priced per GPU as JSON floats.

use nave_domain::Timestamp;
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

/// Sizes of a pod that are offered, as far as the GPU has that many in one place.
const COUNTS: [u32; 4] = [1, 2, 4, 8];
/// Disk of a pod, in GB.
const DISK_GB: u32 = 100;

pub struct Runpod {
    pub api: Api,
    pub settings: Settings,
}

#[derive(Deserialize)]
struct Catalog {
    gpus: Pieces,
}

#[derive(Deserialize)]
struct Gpu {
    id: String,
    #[serde(default)]
    memory: Number,
    price: Tiers,
    #[serde(default, rename = "maxCount")]
    count_max: Tiers,
    #[serde(default)]
    availability: Option<String>,
}

#[derive(Default, Deserialize)]
struct Tiers {
    #[serde(default)]
    secure: Number,
}

#[derive(Deserialize)]
struct List {
    pods: Pieces,
}

#[derive(Deserialize)]
struct Pod {
    id: Box<RawValue>,
    #[serde(default)]
    name: Option<String>,
    status: String,
    #[serde(default)]
    cost: Number,
    #[serde(default, rename = "createdAt")]
    created_at: Option<String>,
}

#[derive(Deserialize)]
struct Created {
    id: Box<RawValue>,
}

fn state(word: &str) -> MachineState {
    match word {
        "PROVISIONING" | "STARTING" => MachineState::Starting,
        "RUNNING" => MachineState::Running,
        "EXITED" => MachineState::Stopped,
        "ERROR" => MachineState::Failed,
        "TERMINATED" => MachineState::Gone,
        _ => MachineState::Unknown,
    }
}

impl Pod {
    fn machine(self) -> Result<Machine, CloudError> {
        let machine = shapes::machine(shapes::id(&self.id)?, self.name, state(&self.status));
        Ok(Machine {
            created_at: shapes::time(self.created_at.as_deref()),
            price: self.cost.as_deref().and_then(dollars),
            ..machine
        })
    }
}

fn offers_of(gpu: &Gpu, raw: &str, now: Timestamp) -> Vec<CloudOffer> {
    let Some(each) = gpu.price.secure.as_deref().and_then(dollars) else { return Vec::new() };
    let vram_each = shapes::some_gib(&gpu.memory);
    let has_some = gpu.availability.as_deref().is_some_and(|word| word != "NONE");
    let most = shapes::count(&gpu.count_max.secure);
    let offer = |devices: u32| {
        Some(CloudOffer {
            cloud: Cloud::Runpod,
            id: format!("{devices}x {}", gpu.id),
            region: String::new(),
            model: gpu.id.clone(),
            class: class_of(&gpu.id, vram_each),
            devices,
            vram_each,
            cpu: shapes::cpu(&None),
            memory: shapes::gib(&None),
            disk: shapes::gib(&None),
            price: times(each, devices)?,
            billing: Cloud::Runpod.terms().billing,
            availability: if has_some { Availability::Available(None) } else { Availability::SoldOut },
            fetched_at: now,
            raw: payload(raw),
        })
    };
    COUNTS.into_iter().filter(|count| *count <= most).filter_map(offer).collect()
}

impl Runpod {
    async fn create(&self, launch: &Launch, now: Timestamp) -> Result<CloudId, CloudError> {
        let script = super::with_dead_man(&launch.boot, now, launch.dead_man);
        let (count, gpu) = launch.offer.id.split_once("x ").ok_or_else(|| malformed("an offer's id"))?;
        let count = count.parse::<u32>().map_err(|_| malformed("an offer's id"))?;
        let body = json!({
            "name": launch.tag.to_string(),
            "image": self.settings.image,
            "disk": DISK_GB,
            "cloud": "SECURE",
            "gpu": { "id": gpu, "count": count },
            // The image runs what it finds here: a pod has no script of its own.
            "env": { "NAVE_BOOT": script.reveal() },
        });
        let reply = self.api.send(Method::POST, "/pods", Some(body)).await.map_err(of_launch)?;
        shapes::id(&read::<Created>(&reply)?.id)
    }
}

impl Provider for Runpod {
    fn cloud(&self) -> Cloud {
        Cloud::Runpod
    }

    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>> {
        Box::pin(async move {
            let catalog: Catalog = self.api.get("/catalog/gpus?include=AVAILABILITY&product=POD").await?;
            Ok(shapes::readable::<Gpu>(&catalog.gpus)
                .flat_map(|(gpu, raw)| offers_of(&gpu, raw, now))
                .collect())
        })
    }

    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId> {
        Box::pin(self.create(launch, now))
    }

    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>> {
        Box::pin(async move {
            let found = if_found(self.api.get::<Pod>(&format!("/pods/{id}")).await)?;
            found.map(Pod::machine).transpose()
        })
    }

    fn list_ours(&self) -> Answer<'_, Vec<Machine>> {
        Box::pin(async move {
            let list: List = self.api.get("/pods").await?;
            shapes::all::<Pod>(&list.pods)?.into_iter().map(Pod::machine).collect()
        })
    }

    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()> {
        Box::pin(async move { self.api.send(Method::DELETE, &format!("/pods/{id}"), None).await.map(drop) })
    }
}
