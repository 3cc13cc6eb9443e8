use serde_json::{Value, json};

use super::{super::wire::reply, Asked, Fault, Real, Shape, Shown, Site, carries, cents, number, text};
use crate::{http::Reply, secret::Secret};

pub struct Lambda;

fn id(real: &Real) -> String {
    format!("0920582c{}", real.number)
}

fn kind(cents: i64) -> Value {
    json!({
        "name": "gpu_1x_h100_sxm5", "description": "1x H100 (80 GB SXM5)", "gpu_description": "H100 (80 GB SXM5)",
        "price_cents_per_hour": cents,
        "specs": { "vcpus": 26, "memory_gib": 225, "storage_gib": 2816, "gpus": 1 },
    })
}

fn info(real: &Real, shown: Shown) -> Value {
    let status = match shown {
        Shown::Starting => "booting",
        Shown::Running => "active",
        Shown::Failed => "unhealthy",
        Shown::Deleting => "terminating",
        Shown::Gone => "terminated",
    };
    json!({
        "id": id(real), "name": real.name, "ip": "198.51.100.2", "status": status, "ssh_key_names": ["ops"],
        "region": { "name": "us-west-1", "description": "California, USA" }, "instance_type": kind(cents(real.price)),
        "jupyter_token": "03b7d30d", "jupyter_url": "https://jupyter.example/?token=03b7d30d",
    })
}

impl Shape for Lambda {
    fn read(&self, method: &str, path: &str, body: &Value) -> Option<Asked> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        Some(match (method, parts.as_slice()) {
            ("GET", ["instance-types"]) => Asked::Offers(""),
            ("GET", ["instances"]) => Asked::List(String::new()),
            ("GET", ["instances", id]) => Asked::Get(number(id, "0920582c")),
            ("POST", ["instance-operations", "terminate"]) => {
                Asked::Delete(number(&text(body, "/instance_ids/0"), "0920582c"))
            }
            ("POST", ["instance-operations", "launch"]) => {
                (body.get("ssh_key_names")?.as_array()?.len() == 1).then_some(())?;
                Asked::Launch { name: text(body, "/name"), script: text(body, "/user_data"), dead_man: None }
            }
            _ => return None,
        })
    }

    fn knows(&self, auth: Option<&(&'static str, Secret)>, _: &mut Site) -> bool {
        carries(auth, "authorization", "Bearer ")
    }

    fn offers(&self, site: &Site, _: &str) -> Reply {
        let regions = json!([{ "name": "us-west-1", "description": "California, USA" }]);
        let full = json!({ "instance_type": kind(1_032), "regions_with_capacity_available": [] });
        reply(
            200,
            json!({ "data": {
                "gpu_1x_h100_sxm5": { "instance_type": kind(cents(site.price)), "regions_with_capacity_available": regions },
                "gpu_8x_full": full,
                "broken": { "instance_type": {} },
            } }),
        )
    }

    fn launched(&self, real: &Real) -> Reply {
        reply(200, json!({ "data": { "instance_ids": [id(real)] } }))
    }

    fn one(&self, shown: Option<(&Real, Shown)>) -> Reply {
        shown.map_or_else(
            || self.fault(Fault::NotFound),
            |(real, shown)| reply(200, json!({ "data": info(real, shown) })),
        )
    }

    fn list(&self, shown: &[(&Real, Shown)], _: &str) -> Reply {
        let all: Vec<Value> = shown.iter().map(|(real, shown)| info(real, *shown)).collect();
        reply(200, json!({ "data": all }))
    }

    fn deleted(&self) -> Reply {
        reply(200, json!({ "data": { "terminated_instances": [] } }))
    }

    fn fault(&self, fault: Fault) -> Reply {
        let (status, code, words) = match fault {
            Fault::OutOfStock => (
                400,
                "instance-operations/launch/insufficient-capacity",
                "Not enough capacity to fulfill launch request.",
            ),
            Fault::Quota => (400, "global/quota-exceeded", "Quota exceeded."),
            Fault::NoBalance => (403, "global/account-inactive", "Your balance is overdue."),
            Fault::RateLimited => (429, "global/rate-limited", "Too many requests."),
            Fault::Provisioning => (400, "global/invalid-parameters", "vm-has-not-launched"),
            Fault::NotFound => (404, "global/object-does-not-exist", "Specified instance does not exist."),
            Fault::Unauthorised => (401, "global/invalid-api-key", "API key was invalid."),
            Fault::Failed | Fault::Silent | Fault::Garbled | Fault::Dearer => {
                (503, "provider/internal-unavailable", "Provider unavailable")
            }
        };
        reply(status, json!({ "error": { "code": code, "message": words } }))
    }
}
