use serde_json::{Value, json};

use super::{super::wire::reply, Asked, Fault, Real, Shape, Shown, Site, carries, float, number, text};
use crate::{http::Reply, secret::Secret};

pub struct Runpod;

fn info(real: &Real, shown: Shown) -> Value {
    let status = match shown {
        Shown::Starting => "PROVISIONING",
        Shown::Running => "RUNNING",
        Shown::Failed | Shown::Deleting => "ERROR",
        Shown::Gone => "TERMINATED",
    };
    // What is over costs nothing any more.
    let cost = if shown == Shown::Gone { json!(0.0) } else { float(real.price) };
    json!({
        "id": format!("pod{}", real.number), "name": real.name, "status": status, "cloud": "SECURE", "cost": cost,
        "gpu": { "id": "NVIDIA H100 80GB HBM3", "count": 1 }, "env": { "NAVE_BOOT": "hidden" },
        "createdAt": real.created_at.to_string(), "startedAt": null, "runtime": null, "dataCenterId": "US-TX-3",
    })
}

impl Shape for Runpod {
    fn read(&self, method: &str, path: &str, body: &Value) -> Option<Asked> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        Some(match (method, parts.as_slice()) {
            // Without a product, availability is an error.
            ("GET", ["catalog", "gpus"]) if query == "include=AVAILABILITY&product=POD" => Asked::Offers(""),
            ("GET", ["pods"]) => Asked::List(String::new()),
            ("GET", ["pods", id]) => Asked::Get(number(id, "pod")),
            ("DELETE", ["pods", id]) => Asked::Delete(number(id, "pod")),
            ("POST", ["pods"]) => {
                (body.pointer("/gpu/count")?.as_u64()? == 1 && !text(body, "/image").is_empty())
                    .then_some(())?;
                Asked::Launch {
                    name: text(body, "/name"),
                    script: text(body, "/env/NAVE_BOOT"),
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
        let h100 = json!({
            "id": "NVIDIA H100 80GB HBM3", "pool": "HOPPER_80", "memory": 80, "price": { "secure": float(site.price), "community": 1.99 },
            "maxCount": { "secure": 8, "community": 4 }, "availability": "HIGH",
        });
        let none = json!({
            "id": "NVIDIA L4", "memory": 24, "price": { "secure": 0.44 }, "maxCount": { "secure": 1 }, "availability": "NONE",
        });
        reply(200, json!({ "gpus": [h100, none, { "id": 7 }] }))
    }

    fn launched(&self, real: &Real) -> Reply {
        reply(201, info(real, Shown::Starting))
    }

    fn one(&self, shown: Option<(&Real, Shown)>) -> Reply {
        shown.map_or_else(|| self.fault(Fault::NotFound), |(real, shown)| reply(200, info(real, shown)))
    }

    fn list(&self, shown: &[(&Real, Shown)], _: &str) -> Reply {
        let all: Vec<Value> = shown.iter().map(|(real, shown)| info(real, *shown)).collect();
        reply(200, json!({ "pods": all }))
    }

    fn deleted(&self) -> Reply {
        reply(204, "")
    }

    fn fault(&self, fault: Fault) -> Reply {
        let (status, title, words) = match fault {
            Fault::OutOfStock => (400, "Bad Request", "There are no longer any instances available"),
            Fault::Quota => (403, "Forbidden", "spending quota exceeded"),
            Fault::NoBalance => (402, "Payment Required", "insufficient balance"),
            Fault::RateLimited => (429, "Too Many Requests", "rate limit exceeded for the minute window"),
            Fault::Provisioning => (409, "Conflict", "the pod is being provisioned"),
            Fault::NotFound => (404, "Not Found", "resource not found"),
            Fault::Unauthorised => (401, "Unauthorized", "missing bearer token"),
            Fault::Failed | Fault::Silent | Fault::Garbled | Fault::Dearer => {
                (500, "Internal Server Error", "failed")
            }
        };
        reply(status, json!({ "title": title, "status": status, "detail": words }))
    }
}
