use serde_json::{Value, json};

use super::{super::wire::reply, Asked, Fault, Real, Shape, Shown, Site, carries, decimal, float, text};
use crate::{http::Reply, secret::Secret};

pub struct Hyperstack;

fn info(real: &Real, shown: Shown) -> Value {
    let status = match shown {
        Shown::Starting => "BUILD",
        Shown::Running => "ACTIVE",
        Shown::Failed => "ERROR",
        Shown::Deleting => "DELETING",
        Shown::Gone => "DELETED",
    };
    // Only the price book tells prices: there is a GPU for each.
    let gpu = format!("H100-80G-PCIe-{}", real.price.0);
    json!({
        "id": real.number, "name": real.name, "status": status, "power_state": "RUNNING", "vm_state": "active",
        "environment": { "name": "default-CANADA-1", "region": "CANADA-1" }, "floating_ip": "203.0.113.7",
        "flavor": { "name": "n3-H100x1", "cpu": 28, "ram": 180, "disk": 100, "gpu": gpu, "gpu_count": 1 },
        "created_at": real.created_at.to_string().trim_end_matches('Z'), "labels": [real.name], "locked": false,
    })
}

impl Shape for Hyperstack {
    fn read(&self, method: &str, path: &str, body: &Value) -> Option<Asked> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        Some(match (method, parts.as_slice()) {
            ("GET", ["core", "flavors"]) => Asked::Offers("flavors"),
            ("GET", ["pricebook"]) => Asked::Offers("prices"),
            ("GET", ["core", "virtual-machines"]) => Asked::List(query.to_owned()),
            ("GET", ["core", "virtual-machines", id]) => Asked::Get(id.parse().ok()),
            ("DELETE", ["core", "virtual-machines", id]) => Asked::Delete(id.parse().ok()),
            ("POST", ["core", "virtual-machines"]) => {
                (body.get("count")?.as_u64()? == 1 && text(body, "/environment_name") == "default-CANADA-1")
                    .then_some(())?;
                Asked::Launch { name: text(body, "/name"), script: text(body, "/user_data"), dead_man: None }
            }
            _ => return None,
        })
    }

    fn knows(&self, auth: Option<&(&'static str, Secret)>, _: &mut Site) -> bool {
        carries(auth, "api_key", "")
    }

    fn offers(&self, site: &Site, part: &str) -> Reply {
        if part == "prices" {
            let of = |real: &Real| json!({ "name": format!("H100-80G-PCIe-{}", real.price.0), "value": decimal(real.price) });
            let mut all: Vec<Value> = site.machines.values().map(of).collect();
            all.push(json!({ "id": 1, "name": "H100-80G-PCIe", "value": float(site.price), "original_value": 9.5 }));
            all.push(json!({ "id": 2, "name": "broken" }));
            all.push(json!({ "id": 3, "name": "H100-80G-PCIe-spot", "value": "0.5" }));
            return reply(200, json!(all));
        }
        let flavor = json!({
            "id": 4, "name": "n3-H100x1", "display_name": null, "region_name": "CANADA-1", "cpu": 28, "ram": 180.0,
            "disk": 100, "ephemeral": 750, "gpu": "H100-80G-PCIe", "gpu_count": 1, "stock_available": true,
        });
        let mut spot = flavor.clone();
        (spot["name"], spot["gpu"]) = (json!("n3-H100x1-spot"), json!("H100-80G-PCIe-spot"));
        let cpu_only =
            json!({ "name": "n1-cpu-small", "region_name": "CANADA-1", "gpu": "", "gpu_count": 0 });
        let group =
            json!({ "gpu": "H100-80G-PCIe", "region_name": "CANADA-1", "flavors": [flavor, spot, cpu_only] });
        reply(200, json!({ "status": true, "message": "Getting flavors successful", "data": [group] }))
    }

    fn launched(&self, real: &Real) -> Reply {
        let all = [info(real, Shown::Starting)];
        reply(200, json!({ "status": true, "message": "Started building", "instances": all }))
    }

    fn one(&self, shown: Option<(&Real, Shown)>) -> Reply {
        shown.map_or_else(
            || self.fault(Fault::NotFound),
            |(real, shown)| reply(200, json!({ "status": true, "instance": info(real, shown) })),
        )
    }

    fn list(&self, shown: &[(&Real, Shown)], page: &str) -> Reply {
        let is_first = page.split('&').any(|part| part == "page=1");
        let all: Vec<Value> =
            shown.iter().filter(|_| is_first).map(|(real, shown)| info(real, *shown)).collect();
        reply(200, json!({ "status": true, "instances": all, "count": all.len() }))
    }

    fn deleted(&self) -> Reply {
        reply(200, json!({ "status": true, "message": "Deleting" }))
    }

    fn fault(&self, fault: Fault) -> Reply {
        let (status, code, words) = match fault {
            Fault::OutOfStock => (400, "bad_request", "Not enough stock for flavor n3-H100x1"),
            Fault::Quota => (400, "bad_request", "Quota exceeded"),
            Fault::NoBalance => (400, "bad_request", "Insufficient balance to create the resource"),
            Fault::RateLimited => (429, "rate_limited", "Too many requests"),
            Fault::Provisioning => {
                (400, "bad_request", "The virtual machine cannot be deleted while it is building")
            }
            Fault::NotFound => (404, "not_found", "Virtual machine does not exist"),
            Fault::Unauthorised => (401, "unauthorized", "Unauthorized"),
            // The old shape of a failure has no reason.
            Fault::Failed | Fault::Silent | Fault::Garbled | Fault::Dearer => {
                return reply(500, json!({ "message": "Internal Server Error" }));
            }
        };
        reply(status, json!({ "status": false, "message": words, "error_reason": code }))
    }
}
