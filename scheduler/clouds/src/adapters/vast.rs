//! Vast: a market of others' containers, priced per machine as JSON floats, memory in MB.

use std::collections::BTreeSet;

use nave_domain::{Bytes, Timestamp};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    Settings,
    shapes::{self, Number, Pieces},
};
use crate::{
    classes::class_of,
    error::{CloudError, Kind, of_words},
    http::{Api, Method, if_found, malformed, of_launch, read},
    money::{dollars, whole},
    provider::{Answer, Availability, Cloud, CloudId, CloudOffer, Launch, Machine, MachineState, Provider},
    secret::payload,
};

/// Offers that are asked for.
const OFFERS_MAX: u32 = 1_000;
/// Disk that is rented with a machine, in GB.
const DISK_GB: u32 = 100;
/// More pages than any account has; what goes on beyond is not a list.
const PAGES_MAX: usize = 200;

pub struct Vast {
    pub api: Api,
    pub settings: Settings,
}

#[derive(Deserialize)]
struct Offers {
    offers: Pieces,
}

#[derive(Deserialize)]
struct Ask {
    id: Box<RawValue>,
    gpu_name: String,
    num_gpus: Number,
    dph_total: Box<RawValue>,
    #[serde(default)]
    gpu_ram: Number,
    #[serde(default)]
    cpu_cores_effective: Number,
    #[serde(default)]
    cpu_ram: Number,
    #[serde(default)]
    disk_space: Number,
    #[serde(default)]
    geolocation: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(rename = "instances")]
    machines: Pieces,
    #[serde(default)]
    next_token: Option<String>,
}

#[derive(Deserialize)]
struct One {
    #[serde(rename = "instances")]
    machine: Option<Info>,
}

#[derive(Deserialize)]
struct Info {
    id: Box<RawValue>,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    actual_status: Option<String>,
    #[serde(default)]
    cur_state: Option<String>,
    #[serde(default)]
    public_ipaddr: Option<String>,
    #[serde(default)]
    start_date: Number,
    #[serde(default)]
    dph_total: Number,
}

/// What most calls that change something answer, with status 200 also when they did not.
#[derive(Deserialize)]
struct Done {
    #[serde(default)]
    success: bool,
    #[serde(default)]
    new_contract: Number,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    msg: Option<String>,
}

impl Done {
    fn refusal(&self) -> CloudError {
        let (code, words) = (self.error.clone().unwrap_or_default(), self.msg.clone().unwrap_or_default());
        let kind = of_words(&code).or_else(|| of_words(&words)).unwrap_or(Kind::Refused);
        CloudError::new(kind, code, &words)
    }
}

fn state(info: &Info) -> MachineState {
    // The contract is what is paid for; the container only says how far it is.
    if info.cur_state.as_deref() == Some("unloaded") {
        return MachineState::Gone;
    }
    match info.actual_status.as_deref() {
        None | Some("created" | "loading" | "rebooting" | "scheduling") => MachineState::Starting,
        Some("running") => MachineState::Running,
        Some("stopped" | "exited" | "frozen") => MachineState::Stopped,
        Some(_) => MachineState::Unknown,
    }
}

impl Info {
    fn machine(self) -> Result<Machine, CloudError> {
        let state = state(&self);
        let since = self.start_date.as_deref().and_then(whole).and_then(|seconds| seconds.checked_mul(1_000));
        Ok(Machine {
            address: shapes::address(self.public_ipaddr),
            created_at: since.map(Timestamp),
            price: self.dph_total.as_deref().and_then(dollars),
            ..shapes::machine(shapes::id(&self.id)?, self.label, state)
        })
    }
}

/// MB as bytes; zero where nothing is said.
fn mb(number: &Number) -> Bytes {
    let mb = number.as_deref().and_then(whole).unwrap_or(0);
    Bytes(mb.checked_mul(Bytes::MIB).unwrap_or(0))
}

fn offer_of(ask: &Ask, raw: &str, now: Timestamp) -> Option<CloudOffer> {
    let vram_each = Some(mb(&ask.gpu_ram)).filter(|vram| *vram > Bytes::ZERO);
    Some(CloudOffer {
        cloud: Cloud::Vast,
        id: shapes::id(&ask.id).ok()?.to_string(),
        region: ask.geolocation.clone().unwrap_or_default(),
        model: ask.gpu_name.clone(),
        class: class_of(&ask.gpu_name, vram_each),
        devices: shapes::count(&ask.num_gpus),
        vram_each,
        cpu: shapes::cpu(&ask.cpu_cores_effective),
        memory: mb(&ask.cpu_ram),
        disk: shapes::gib(&ask.disk_space),
        price: dollars(&ask.dph_total)?,
        billing: Cloud::Vast.terms().billing,
        // What is rented disappears from the list: each offer is one machine.
        availability: Availability::Available(Some(1)),
        fetched_at: now,
        raw: payload(raw),
    })
}

impl Vast {
    async fn create(&self, launch: &Launch, now: Timestamp) -> Result<CloudId, CloudError> {
        let script = super::with_dead_man(&launch.boot, now, launch.dead_man);
        let body = json!({
            "client_id": "me",
            "image": self.settings.image,
            "disk": DISK_GB,
            "label": launch.tag.to_string(),
            "onstart": script.reveal(),
            "runtype": "ssh_direct",
            "target_state": "running",
            "cancel_unavail": true,
        });
        let offer = CloudId::new(&launch.offer.id).ok_or_else(|| malformed("an offer's id"))?;
        let reply =
            self.api.send(Method::PUT, &format!("/v0/asks/{offer}/"), Some(body)).await.map_err(of_launch)?;
        let done: Done = read(&reply)?;
        match &done.new_contract {
            Some(id) => shapes::id(id),
            None if done.success => Err(malformed("a launch without an id")),
            None => Err(done.refusal()),
        }
    }

    async fn list(&self) -> Result<Vec<Machine>, CloudError> {
        let (mut machines, mut seen, mut path) =
            (Vec::new(), BTreeSet::new(), "/v1/instances/?limit=25".to_owned());
        for _ in 0..PAGES_MAX {
            let page: Page = self.api.get(&path).await?;
            let before = seen.len();
            for info in shapes::all::<Info>(&page.machines)? {
                let machine = info.machine()?;
                if seen.insert(machine.id.clone()) {
                    machines.push(machine);
                }
            }
            let Some(token) = page.next_token.filter(|token| !token.is_empty()) else { return Ok(machines) };
            if seen.len() == before {
                // The token led nowhere: what is behind it is not known, and part of a list is none.
                return Err(malformed("a page that was there before"));
            }
            path = format!("/v1/instances/?limit=25&next_token={}", escaped(&token));
        }
        Err(malformed("a list without an end"))
    }
}

/// A text as part of a query.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

impl Provider for Vast {
    fn cloud(&self) -> Cloud {
        Cloud::Vast
    }

    fn list_offers(&self, now: Timestamp) -> Answer<'_, Vec<CloudOffer>> {
        Box::pin(async move {
            let filter = json!({
                "rentable": { "eq": true },
                "rented": { "eq": false },
                "verified": { "eq": true },
                "type": "on-demand",
                "allocated_storage": DISK_GB,
                "order": [["dph_total", "asc"]],
                "limit": OFFERS_MAX,
            });
            let offers: Offers = read(&self.api.send(Method::POST, "/v0/bundles/", Some(filter)).await?)?;
            Ok(shapes::readable::<Ask>(&offers.offers)
                .filter_map(|(ask, raw)| offer_of(&ask, raw, now))
                .collect())
        })
    }

    fn launch<'a>(&'a self, launch: &'a Launch, now: Timestamp) -> Answer<'a, CloudId> {
        Box::pin(self.create(launch, now))
    }

    fn get<'a>(&'a self, id: &'a CloudId) -> Answer<'a, Option<Machine>> {
        Box::pin(async move {
            let found = if_found(self.api.get::<One>(&format!("/v0/instances/{id}/")).await)?;
            found.and_then(|found| found.machine).map(Info::machine).transpose()
        })
    }

    fn list_ours(&self) -> Answer<'_, Vec<Machine>> {
        Box::pin(self.list())
    }

    fn delete<'a>(&'a self, id: &'a CloudId) -> Answer<'a, ()> {
        Box::pin(async move {
            let reply = self.api.send(Method::DELETE, &format!("/v0/instances/{id}/"), None).await?;
            let done: Done = read(&reply)?;
            if done.success { Ok(()) } else { Err(done.refusal()) }
        })
    }
}
