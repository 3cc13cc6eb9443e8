use nave_domain::MicroUsd;
use serde_json::{Value, json};

use super::{super::wire::reply, Asked, Fault, KEY, Real, Shape, Shown, Site, decimal, float, number, text};
use crate::{http::Reply, secret::Secret};

/// What the session of a double is known by.
const TOKEN: &str = "Bearer session-1";
/// What the disk of a machine costs beside it.
const DISK_PRICE: MicroUsd = MicroUsd(55_000);
/// How often a session is over, in a thousand calls.
const OVER: u64 = 30;

pub struct Verda;

fn id(real: &Real) -> String {
    format!("deadc0de-{}", real.number)
}

fn volume(number: u64) -> String {
    format!("0f0f0f0f-{number}")
}

/// What a machine costs without its disk.
fn bare(price: MicroUsd) -> MicroUsd {
    MicroUsd(price.0 - DISK_PRICE.0)
}

fn info(real: &Real, shown: Shown) -> Value {
    let status = match shown {
        Shown::Starting => "provisioning",
        Shown::Running => "running",
        Shown::Failed => "error",
        Shown::Deleting => "deleting",
        Shown::Gone => "discontinued",
    };
    json!({
        "id": id(real), "created_at": real.created_at.to_string(), "status": status, "ip": "203.0.113.7",
        "hostname": real.name, "description": real.name, "location": "FIN-01", "price_per_hour": float(bare(real.price)),
        "instance_type": "1H100.80S.30V", "image": "ubuntu-24.04", "ssh_key_ids": [], "startup_script_id": "script-1",
        "os_volume_id": (shown != Shown::Starting).then(|| volume(real.number)),
    })
}

impl Shape for Verda {
    fn read(&self, method: &str, path: &str, body: &Value) -> Option<Asked> {
        let path = path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        Some(match (method, parts.as_slice()) {
            ("POST", ["oauth2", "token"]) => {
                (text(body, "/client_secret") == KEY && text(body, "/grant_type") == "client_credentials")
                    .then_some(())?;
                Asked::Session
            }
            ("GET", ["instance-types"]) => Asked::Offers("types"),
            ("GET", ["instance-availability"]) => Asked::Offers("places"),
            ("GET", ["instances"]) => Asked::List(String::new()),
            ("GET", ["instances", id]) => Asked::Get(number(id, "deadc0de-")),
            ("PUT", ["instances"]) if text(body, "/action") == "delete" => {
                let number = number(&text(body, "/id/0"), "deadc0de-");
                // Its own disk goes with it, named or not.
                let named = text(body, "/volume_ids/0");
                (named.is_empty() || number.map(volume) == Some(named)).then_some(())?;
                Asked::Delete(number)
            }
            ("POST", ["scripts"]) => {
                // What boots is stored first: it must hold all that a launch elsewhere does.
                let script = text(body, "/script");
                (script.contains("shutdown -P +") && script.contains("join")).then_some(Asked::Other)?
            }
            ("DELETE", ["scripts", _]) => Asked::Other,
            ("POST", ["instances"]) => {
                // Without a size it would boot with a disk on which no job has room.
                (body.pointer("/os_volume/size")?.as_u64()? >= 100).then_some(())?;
                let script = text(body, "/startup_script_id");
                let script = if script.is_empty() { script } else { "shutdown -P +1 join".to_owned() };
                Asked::Launch { name: text(body, "/hostname"), script, dead_man: None }
            }
            _ => return None,
        })
    }

    fn knows(&self, auth: Option<&(&'static str, Secret)>, site: &mut Site) -> bool {
        let is_over = site.faults.failed > 0 && site.numbers().permille(OVER);
        auth.is_some_and(|(name, value)| *name == "authorization" && value.reveal() == TOKEN) && !is_over
    }

    fn offers(&self, site: &Site, part: &str) -> Reply {
        if part == "places" {
            let fin = json!({ "location_code": "FIN-01", "availabilities": ["1H100.80S.30V", "CPU.4V.16G"] });
            return reply(200, json!([fin, { "location_code": "ICE-01", "availabilities": [] }]));
        }
        let kind = json!({
            "id": "c01dd00d", "instance_type": "1H100.80S.30V", "price_per_hour": decimal(bare(site.price)), "spot_price": "1.70",
            "currency": "usd", "cpu": { "number_of_cores": 30 }, "memory": { "size_in_gigabytes": 120 },
            "gpu": { "description": "1x H100 SXM5 80GB", "number_of_gpus": 1 }, "gpu_memory": { "size_in_gigabytes": 80 },
            "storage": { "description": "dynamic" },
        });
        let cpu = json!({
            "instance_type": "CPU.4V.16G", "price_per_hour": "0.10", "gpu": { "description": "", "number_of_gpus": 0 },
        });
        reply(200, json!([kind, cpu, { "instance_type": 1 }]))
    }

    fn launched(&self, real: &Real) -> Reply {
        reply(202, id(real))
    }

    fn one(&self, shown: Option<(&Real, Shown)>) -> Reply {
        shown.map_or_else(|| self.fault(Fault::NotFound), |(real, shown)| reply(200, info(real, shown)))
    }

    fn list(&self, shown: &[(&Real, Shown)], _: &str) -> Reply {
        reply(200, json!(shown.iter().map(|(real, shown)| info(real, *shown)).collect::<Vec<_>>()))
    }

    fn deleted(&self) -> Reply {
        reply(202, "")
    }

    fn fault(&self, fault: Fault) -> Reply {
        let (status, code, words) = match fault {
            Fault::OutOfStock => (400, "invalid_request", "1H100.80S.30V is not available in FIN-01"),
            Fault::Quota => (403, "forbidden_action", "quota exceeded"),
            Fault::NoBalance => (402, "insufficient_funds", "insufficient funds"),
            Fault::RateLimited => (429, "too_many_requests", "too many requests"),
            Fault::Provisioning => (400, "invalid_request", "the instance is provisioning"),
            Fault::NotFound => (404, "not_found", "no such instance"),
            Fault::Unauthorised => (401, "unauthorized_request", "the token is not valid"),
            Fault::Failed | Fault::Silent | Fault::Garbled | Fault::Dearer => {
                (503, "service_unavailable", "down")
            }
        };
        reply(status, json!({ "code": code, "message": words }))
    }

    fn session(&self) -> Reply {
        reply(200, json!({ "access_token": "session-1", "expires_in": 3600, "token_type": "Bearer" }))
    }

    fn other(&self) -> Reply {
        reply(201, "script-1")
    }
}
