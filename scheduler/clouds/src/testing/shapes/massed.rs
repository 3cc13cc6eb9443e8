use serde_json::{Value, json};

use super::{super::wire::reply, Asked, Fault, Real, Shape, Shown, Site, carries, cents, number, text};
use crate::{http::Reply, secret::Secret};

pub struct Massed;

/// Where it has machines.
const REGION: &str = "us-central-3";

fn id(real: &Real) -> String {
    format!("8b52a46b-{}", real.number)
}

/// Only the inventory tells prices: what runs has a product for each, beside that which is offered.
fn product(cents: i64) -> String {
    format!("gpu_1x_l40s_{cents}")
}

fn info(real: &Real, shown: Shown) -> Value {
    let status = match shown {
        Shown::Starting => "provisioning",
        Shown::Running => "rented",
        Shown::Failed => "error",
        Shown::Deleting => "terminating",
        Shown::Gone => "terminated",
    };
    json!({
        "uuid": id(real), "name": real.name, "ip": "203.0.113.7", "username": "Ubuntu", "password": 123_456,
        "status": status, "os_booted": 1, "command_startup": "", "created": real.created_at.to_string(), "active": 1,
        "image": { "id": 7, "name": "Art" }, "product": { "name": product(cents(real.price)), "storage": 256 },
    })
}

fn entry(cents: i64) -> Value {
    json!({
        "instance_type": {
            "name": "gpu_1x_l40s", "description": "1x L40S", "price_cents_per_hour": cents,
            "specs": { "vcpu_count": 26, "memory_gib": 128, "storage_gb": 625 },
        },
        "regions_with_capacity_available": [{ "name": REGION, "description": "Kansas City" }],
        "capacity_available": 3,
    })
}

impl Shape for Massed {
    fn read(&self, method: &str, path: &str, body: &Value) -> Option<Asked> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        Some(match (method, parts.as_slice()) {
            ("GET", ["gpu-inventory"]) => Asked::Offers(""),
            ("GET", ["instance"]) => Asked::List(String::new()),
            ("GET", ["instance", id]) => Asked::Get(number(id, "8b52a46b-")),
            ("POST", ["instance", "terminate"]) => {
                Asked::Delete(number(&text(body, "/instanceUuids/0"), "8b52a46b-"))
            }
            ("POST", ["instance", "launch"]) => {
                body.get("imageId")?.as_u64()?;
                // Somebody chose the region with the offer.
                (text(body, "/regionName") == REGION).then_some(())?;
                Asked::Launch {
                    name: text(body, "/instanceName"),
                    script: text(body, "/command"),
                    dead_man: None,
                }
            }
            _ => return None,
        })
    }

    fn knows(&self, auth: Option<&(&'static str, Secret)>, _: &mut Site) -> bool {
        carries(auth, "authorization", "Bearer ")
    }

    fn offers(&self, site: &Site, _: &str) -> Reply {
        let mut all = serde_json::Map::new();
        for real in site.machines.values() {
            all.insert(product(cents(real.price)), entry(cents(real.price)));
        }
        all.insert("gpu_1x_l40s".to_owned(), entry(cents(site.price)));
        all.insert("gpu_1x_l40s_spot".to_owned(), entry(50));
        all.insert("gpu_8x_broken".to_owned(), json!({ "instance_type": null }));
        reply(200, json!({ "gpu_inventory": all }))
    }

    fn launched(&self, real: &Real) -> Reply {
        reply(202, json!({ "response": id(real) }))
    }

    fn one(&self, shown: Option<(&Real, Shown)>) -> Reply {
        // It knows no 404: an id that it does not know is an empty list.
        let all: Vec<Value> = shown.iter().map(|(real, shown)| info(real, *shown)).collect();
        reply(200, json!({ "runningInstances": all }))
    }

    fn list(&self, shown: &[(&Real, Shown)], _: &str) -> Reply {
        let all: Vec<Value> = shown.iter().map(|(real, shown)| info(real, *shown)).collect();
        reply(200, json!({ "runningInstances": all }))
    }

    fn deleted(&self) -> Reply {
        reply(200, json!({ "response": { "data": { "terminated_instances": [] } } }))
    }

    fn fault(&self, fault: Fault) -> Reply {
        let (status, words) = match fault {
            Fault::OutOfStock => (400, "There is not enough capacity for this product"),
            Fault::Quota => (400, "Account limit reached"),
            Fault::NoBalance => (402, "Insufficient balance"),
            Fault::RateLimited => (429, "Too many requests"),
            Fault::Provisioning => (400, "The VM is still being provisioned"),
            Fault::NotFound => (400, "No valid VMs found"),
            Fault::Unauthorised => (401, "Authentication not correct."),
            Fault::Failed | Fault::Silent | Fault::Garbled | Fault::Dearer => {
                (502, "Failed to launch instance")
            }
        };
        reply(status, json!({ "message": words }))
    }
}
