use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{super::wire::reply, Asked, Fault, Real, Shape, Shown, Site, carries, cents, number, text};
use crate::{http::Reply, secret::Secret};

pub struct Shadeform;

fn id(real: &Real) -> String {
    format!("d290f1ee-{}", real.number)
}

fn info(real: &Real, shown: Shown) -> Value {
    let status = match shown {
        Shown::Starting => "pending",
        Shown::Running => "active",
        Shown::Failed => "error",
        Shown::Deleting => "deleting",
        Shown::Gone => "deleted",
    };
    json!({
        "id": id(real), "cloud": "hyperstack", "region": "canada-1", "shade_instance_type": "H100_sxm5", "name": real.name,
        "cloud_assigned_id": "13b057d7", "shade_cloud": true, "ip": "203.0.113.7", "ssh_user": "shadeform",
        "ssh_port": 22, "status": status, "cost_estimate": "103.4", "hourly_price": cents(real.price),
        "created_at": real.created_at.to_string(), "deleted_at": null,
    })
}

impl Shape for Shadeform {
    fn read(&self, method: &str, path: &str, body: &Value) -> Option<Asked> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        Some(match (method, parts.as_slice()) {
            ("GET", ["instances", "types"]) => Asked::Offers(""),
            ("GET", ["instances"]) => Asked::List(String::new()),
            ("GET", ["instances", id, "info"]) => Asked::Get(number(id, "d290f1ee-")),
            ("POST", ["instances", id, "delete"]) => Asked::Delete(number(id, "d290f1ee-")),
            ("POST", ["instances", "create"]) => {
                let script =
                    STANDARD.decode(text(body, "/launch_configuration/script_configuration/base64_script"));
                let dead_man = body.pointer("/auto_delete/date_threshold")?.clone();
                // It costs money beyond this: a launch without it is none of ours.
                body.pointer("/auto_delete/spend_threshold")?.as_str()?;
                Asked::Launch {
                    name: text(body, "/name"),
                    script: String::from_utf8(script.ok()?).ok()?,
                    dead_man: Some(serde_json::from_value(dead_man).ok()?),
                }
            }
            _ => return None,
        })
    }

    fn knows(&self, auth: Option<&(&'static str, Secret)>, _: &mut Site) -> bool {
        carries(auth, "x-api-key", "")
    }

    fn offers(&self, site: &Site, _: &str) -> Reply {
        let kind = json!({
            "cloud": "hyperstack", "shade_instance_type": "H100_sxm5", "cloud_instance_type": "n3-H100x1",
            "hourly_price": cents(site.price), "deployment_type": "vm",
            "configuration": {
                "gpu_type": "H100", "interconnect": "sxm5", "num_gpus": 1, "vcpus": 28, "memory_in_gb": 180,
                "storage_in_gb": 850, "vram_per_gpu_in_gb": 80, "os_options": ["ubuntu22.04_cuda12.2_shade_os"],
            },
            "availability": [
                { "region": "canada-1", "available": true },
                { "region": "norway-1", "available": false },
            ],
        });
        reply(200, json!({ "instance_types": [kind, { "cloud": "broken" }] }))
    }

    fn launched(&self, real: &Real) -> Reply {
        reply(200, json!({ "id": id(real), "cloud_assigned_id": "13b057d7" }))
    }

    fn one(&self, shown: Option<(&Real, Shown)>) -> Reply {
        shown.map_or_else(|| self.fault(Fault::NotFound), |(real, shown)| reply(200, info(real, shown)))
    }

    fn list(&self, shown: &[(&Real, Shown)], _: &str) -> Reply {
        let all: Vec<Value> = shown.iter().map(|(real, shown)| info(real, *shown)).collect();
        reply(200, json!({ "instances": all }))
    }

    fn deleted(&self) -> Reply {
        reply(200, "")
    }

    fn fault(&self, fault: Fault) -> Reply {
        let (status, code, words) = match fault {
            Fault::OutOfStock => (409, "OUT_OF_STOCK", "the instance type is out of stock"),
            Fault::Quota => (400, "LIMIT", "instance limit reached"),
            Fault::NoBalance => (400, "BALANCE", "insufficient balance"),
            Fault::RateLimited => (429, "RATE_LIMITED", "too many requests"),
            Fault::Provisioning => (409, "CONFLICT", "the instance must be active before it can be deleted"),
            Fault::NotFound => (404, "NOT_FOUND", "instance not found"),
            Fault::Unauthorised => (401, "UNAUTHORIZED", "invalid API key"),
            Fault::Failed | Fault::Silent | Fault::Garbled | Fault::Dearer => {
                (500, "INTERNAL", "internal error")
            }
        };
        reply(status, json!({ "error_code": code, "error": words }))
    }
}
