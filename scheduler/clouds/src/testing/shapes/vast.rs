use serde_json::{Value, json};

use super::{super::wire::reply, Asked, Fault, Real, Shape, Shown, Site, carries, float, text};
use crate::{http::Reply, secret::Secret};

/// Machines in a page: few, so that there are several.
const PAGE: usize = 2;

pub struct Vast;

fn info(real: &Real, shown: Shown) -> Value {
    let (actual, cur) = match shown {
        Shown::Starting => (json!(null), "running"),
        Shown::Running => (json!("running"), "running"),
        Shown::Failed => (json!("exited"), "running"),
        Shown::Deleting => (json!("offline"), "stopped"),
        Shown::Gone => (json!("exited"), "unloaded"),
    };
    json!({
        "id": real.number, "label": real.name, "actual_status": actual, "cur_state": cur, "next_state": cur,
        "intended_status": "running", "public_ipaddr": "192.0.2.45", "start_date": real.created_at.0 / 1_000,
        "dph_total": float(real.price), "gpu_name": "H100 SXM", "num_gpus": 1, "onstart": "hidden",
        "jupyter_token": "df77", "extra_env": [["KEY", "value"]],
    })
}

impl Shape for Vast {
    fn read(&self, method: &str, path: &str, body: &Value) -> Option<Asked> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        Some(match (method, parts.as_slice()) {
            ("POST", ["v0", "bundles"]) => Asked::Offers(""),
            ("GET", ["v1", "instances"]) => Asked::List(query.to_owned()),
            ("GET", ["v0", "instances", id]) => Asked::Get(id.parse().ok()),
            ("DELETE", ["v0", "instances", id]) => Asked::Delete(id.parse().ok()),
            ("PUT", ["v0", "asks", "77"]) => {
                (text(body, "/client_id") == "me" && !text(body, "/image").is_empty()).then_some(())?;
                Asked::Launch { name: text(body, "/label"), script: text(body, "/onstart"), dead_man: None }
            }
            _ => return None,
        })
    }

    fn knows(&self, auth: Option<&(&'static str, Secret)>, _: &mut Site) -> bool {
        carries(auth, "authorization", "Bearer ")
    }

    fn offers(&self, site: &Site, _: &str) -> Reply {
        let ask = json!({
            "id": 77, "gpu_name": "H100 SXM", "num_gpus": 1, "dph_total": float(site.price), "gpu_ram": 81_559,
            "cpu_cores_effective": 32.0, "cpu_ram": 257_000, "disk_space": 1_523.4, "geolocation": "Texas, US",
        });
        reply(200, json!({ "offers": [ask, { "id": null }] }))
    }

    fn launched(&self, real: &Real) -> Reply {
        reply(200, json!({ "success": true, "new_contract": real.number }))
    }

    fn one(&self, shown: Option<(&Real, Shown)>) -> Reply {
        // It knows no 404 here.
        let machine = shown.map(|(real, shown)| info(real, shown));
        reply(200, json!({ "instances": machine }))
    }

    fn list(&self, shown: &[(&Real, Shown)], page: &str) -> Reply {
        let token = page.split('&').find_map(|part| part.strip_prefix("next_token="));
        let from =
            token.and_then(|token| token.strip_prefix("t-")).and_then(|from| from.parse().ok()).unwrap_or(0);
        let all: Vec<Value> =
            shown.iter().skip(from).take(PAGE).map(|(real, shown)| info(real, *shown)).collect();
        let next = (from + PAGE < shown.len()).then(|| format!("t-{}", from + PAGE));
        reply(
            200,
            json!({ "success": true, "instances_found": all.len(), "instances": all, "next_token": next }),
        )
    }

    fn deleted(&self) -> Reply {
        reply(200, json!({ "success": true, "msg": "Instance destroyed successfully" }))
    }

    fn fault(&self, fault: Fault) -> Reply {
        let (status, code, words) = match fault {
            Fault::OutOfStock => {
                (410, "no_such_ask", "error 410/3907: no_such_ask Instance type 77 is no longer available.")
            }
            // Some refusals come with status 200.
            Fault::Quota => (200, "quota", "quota exceeded"),
            Fault::NoBalance => {
                (400, "insufficient_credit", "Your account lacks credit; see the billing page.")
            }
            Fault::RateLimited => {
                return reply(429, json!({ "detail": "API requests too frequent endpoint threshold=4.5" }));
            }
            Fault::Provisioning => (200, "busy", "The instance is being created"),
            Fault::NotFound => (404, "no_such_instance", "Instance not found"),
            Fault::Unauthorised => (401, "auth_error", "Invalid user key"),
            Fault::Failed | Fault::Silent | Fault::Garbled | Fault::Dearer => (502, "error", "bad gateway"),
        };
        reply(status, json!({ "success": false, "error": code, "msg": words }))
    }
}
