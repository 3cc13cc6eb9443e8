//! Expected texts in `tests/golden/`, and samples to render.
//! `UPDATE_GOLDEN=1 cargo test -p nave-sdk` writes them anew.

use std::{env, fs, path::Path};

use clap::{Command, CommandFactory as _};
use nave_sdk::wire::{
    enrol::MinerHost,
    quote::Quote,
    rest::{DeviceClass, Epoch, Host, Job, Offer, Receipt},
    verdict::{HostVerdict, VerdictRecord},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::args::Cli;

/// Compares `text` with the golden file `name`.
pub fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("write the golden file");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name} has changed; UPDATE_GOLDEN=1 accepts it");
}

#[test]
fn the_help_of_every_command_is_as_agreed() {
    help(&[], &Cli::command());
}

fn help(path: &[&str], command: &Command) {
    let typed = ["nave", "help"].iter().chain(path);
    let shown = Cli::command().term_width(100).try_get_matches_from(typed).expect_err("help is shown");
    let name = ["help"].iter().chain(path).copied().collect::<Vec<_>>().join("-");
    check(&format!("{name}.txt"), &shown.to_string());
    for child in command.get_subcommands() {
        help(&[path, &[child.get_name()]].concat(), child);
    }
}

fn sample<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a sample as the API would send it")
}

pub fn id(prefix: &str, number: u32) -> String {
    format!("{prefix}_{number:032}")
}

fn attempt() -> Value {
    json!({
        "lease": id("lease", 1), "attempt": 1, "host": id("host", 1), "host_name": "local-1",
        "state": "closed", "hourly": 143_000, "placed_at": "2026-09-21T14:12:20Z",
        "started_at": "2026-09-21T14:12:21Z", "ended_at": "2026-09-21T14:12:24.1Z", "used_ms": 3_100,
        "charged": 123, "outcome": { "kind": "exited", "code": 0 }
    })
}

/// Two jobs.
pub fn jobs() -> Vec<Job> {
    let job = |number, state: &str, argv: &[&str], attempts: Value| {
        sample(json!({
            "job": id("job", number), "state": state, "request": { "argv": argv },
            "created_at": "2026-09-21T14:12:20Z", "finished_at": null, "exit_code": null, "reason": null,
            "charged": 123, "attempts": attempts, "has_result": false,
            "result_truncated": false, "actions": ["cancel", "logs"]
        }))
    };
    let python = ["python3", "-c", "print(sum(i * i for i in range(1_000_000)))"];
    vec![job(1, "succeeded", &python, json!([attempt()])), job(2, "queued", &["nvidia-smi"], json!([]))]
}

fn inventory(runtime: &Value, devices: &Value) -> Value {
    json!({
        "milli_cpu": 1_500, "memory": 3_221_225_472_i64, "disk": 53_687_091_200_i64, "devices": devices,
        "cpu_model": "EPYC", "os": "Debian", "kernel": "6.1", "runtime": runtime, "egress": ["public"],
        "agent": "0.1.0"
    })
}

/// A Docker host with GPUs, a simulated one, and one that was never heard.
pub fn hosts() -> Vec<Host> {
    let gpu =
        |uuid: &str| json!({ "uuid": uuid, "model": "H100", "vram": 85_899_345_920_i64, "driver": "570" });
    let host = |number, name: &str, state: &str, inventory: Value| {
        let heard = if inventory.is_null() { Value::Null } else { json!("2026-09-21T14:13:18Z") };
        sample(json!({
            "host": id("host", number), "name": name, "hotkey": "5F", "trust": "unrated",
            "state": state, "paused": number == 2,
            "inventory": inventory, "rate": { "gpu_hour": 2_000_000, "vcpu_hour": 20_000, "gib_hour": 3_000 },
            "heard_at": heard, "leases": 1
        }))
    };
    let docker = json!({ "kind": "docker", "version": "26.1" });
    let simulated = json!({ "kind": "simulated" });
    let mut simulated_gpu = gpu("SIM-1");
    simulated_gpu["simulated"] = json!(true);
    vec![
        host(1, "local-1", "ready", inventory(&docker, &json!([gpu("GPU-1"), gpu("GPU-2")]))),
        host(2, "act\u{1b}[31mor", "suspect", inventory(&simulated, &json!([simulated_gpu]))),
        host(3, "new", "enrolled", Value::Null),
    ]
}

/// A miner's hosts: one that works and is paused, one that was refused, and one that has not come yet.
pub fn miner_hosts() -> Vec<MinerHost> {
    let host = |number, name: &str, state: &str| {
        json!({
            "host": id("host", number), "name": name, "state": state, "reason": null, "paused": false,
            "rate": { "gpu_hour": 1_500_000, "vcpu_hour": 20_000, "gib_hour": 3_000 }, "term": "on_demand",
            "trust": "unrated", "inventory": null, "proven": null, "mesh_address": null, "heard_at": null,
            "leases": 0, "enrolled_at": "2026-09-20T14:00:00Z", "actions": ["pause", "leave"]
        })
    };
    let inventory = json!({
        "capacity": { "gpus": { "H100": 2 }, "milli_cpu": 8_000, "memory": 34_359_738_368_i64,
                      "disk": 53_687_091_200_i64 },
        "cpu_model": "EPYC 7763", "os": "Debian 12", "runtime": "docker", "agent_version": "0.1.0"
    });
    let mut ready = host(1, "gpu-1", "ready");
    ready["paused"] = json!(true);
    ready["leases"] = json!(2);
    ready["inventory"] = inventory.clone();
    ready["proven"] = json!({ "milli_cpu": 8_000, "memory": 34_359_738_368_i64, "cpu_model": "EPYC 7763" });
    ready["mesh_address"] = json!("fd12:3456:789a:1::7");
    ready["heard_at"] = json!("2026-09-21T14:13:18Z");
    let mut refused = host(2, "gpu\u{1b}-2", "refused");
    refused["inventory"] = inventory;
    refused["heard_at"] = json!("2026-09-21T14:13:18Z");
    refused["term"] = json!("spot");
    refused["reason"] = json!({
        "code": "cpu_below_claim", "message": "it claims 8 cores and computes like 2; offer what it has",
        "since": "2026-09-21T14:00:00Z"
    });
    sample(json!([ready, refused, host(3, "new", "enrolled")]))
}

fn verdict(number: u32, kind: &str, code: &str, ruling: Value) -> Value {
    json!({
        "challenge": id("challenge", number), "host": id("host", 1), "kind": kind, "cause": "enrolment",
        "shadow": false, "beside_job": false, "drawn_at": "2026-09-21T14:12:20Z",
        "decided_at": "2026-09-21T14:12:30Z", "code": code, "ruling": ruling, "opening": "kept",
        "appeal": null, "ban": null, "actions": []
    })
}

fn failed(number: u32, kind: &str, code: &str, message: &str) -> Value {
    let mut failed = verdict(number, kind, code, json!({ "failed": { "code": code, "message": message } }));
    failed["actions"] = json!(["appeal"]);
    failed
}

/// Verdicts on one host: passed, failed and banned for it, failed while on trial, and one that does not count.
pub fn verdicts() -> Vec<HostVerdict> {
    let cpu = json!({ "passed": { "cpu": { "milli_cpu": 1_900, "steps_per_s": 38_000_000, "elapsed_ms": 2_100 } } });
    let mut banned = failed(4, "devices", "evidence_wrong", "GPU-1: an entry of a product is\u{1b}[2J wrong");
    banned["ban"] = json!({ "span_ms": 3_600_000, "is_over": true, "lifted_by": "appeal" });
    banned["appeal"] = json!({ "at": "2026-09-21T15:00:00Z", "ruling": { "void": "the judge broke off" } });
    banned["actions"] = json!([]);
    let mut trial =
        failed(3, "software", "software_outdated", "runc 1.1.0 has a flaw that 1.1.12 has no more");
    trial["shadow"] = json!(true);
    sample(json!([
        banned,
        trial,
        failed(2, "cpu", "cpu_overclaimed", "claims 16 cores, proved 1.9 cores in 2.100 s"),
        verdict(1, "cpu", "passed", cpu),
        verdict(0, "memory", "void", json!({ "void": "hosts could not reach the control plane meanwhile" })),
    ]))
}

/// A failed test of computing power with its evidence.
pub fn verdict_record() -> VerdictRecord {
    let commitment = "ab".repeat(32);
    sample(json!({
        "verdict": failed(2, "cpu", "cpu_overclaimed", "claims 16 cores, proved 1.9 cores in 2.100 s"),
        "test": {
            "version": 2, "challenge": id("challenge", 2), "host": id("host", 1),
            "task": { "cpu": { "milli_cpu": 16_000, "segments": 64, "samples": 4 } },
            "nonce": "01".repeat(32), "reveals": ["02".repeat(32)]
        },
        "exchanges": [
            { "sent_at": "2026-09-21T14:12:20Z", "answered_at": "2026-09-21T14:12:22.1Z",
              "commitment": commitment, "gave_up": null },
            { "sent_at": "2026-09-21T14:12:23Z", "answered_at": "2026-09-21T14:12:24Z",
              "commitment": null, "gave_up": null },
        ],
        "rules": "cd".repeat(32)
    }))
}

/// An offer of GPUs, of shares and of slices of such, and one without any.
pub fn offers() -> Vec<Offer> {
    let capacity = |gpus: Value, milli_cpu: i64, memory: i64| json!({ "gpus": gpus, "milli_cpu": milli_cpu, "memory": memory, "disk": 53_687_091_200_i64 });
    let rate = json!({ "gpu_hour": 2_000_000, "vcpu_hour": 20_000, "gib_hour": 3_000 });
    let part = |profile: Value, share: i64, gib: i64, paid: i64| {
        let mut offer = json!({
            "host": id("host", 1), "host_name": "local-1", "runtime": "docker", "rate": rate, "trust": "verified",
            "free": capacity(json!({ "H100": 0 }), 500, 1_073_741_824), "region": "eu", "term": "on_demand",
            "total": capacity(json!({ "H100": 1 }), 1_500, 3_221_225_472), "baseline": 2_490_000, "saving": 451_000,
            "devices": { "model": "H100", "class": "h100", "vram": 85_899_345_920_i64, "free": 0, "total": 1 },
            "isolation": "device"
        });
        offer["fraction"] = json!({
            "profile": profile, "share": share, "vram": gib << 30, "paid": paid, "free": 3, "total": 4,
            "gpu_hour": 2_000 * paid, "baseline": 2_490 * paid, "saving": 451 * paid
        });
        offer
    };
    sample(json!([part(Value::Null, 250, 8, 250), part(json!("1g.10gb"), 142, 10, 142), {
        "host": id("host", 1), "host_name": "local-1", "runtime": "docker", "rate": rate, "trust": "verified",
        "free": capacity(json!({ "H100": 1 }), 500, 1_073_741_824), "region": "eu", "term": "spot",
        "total": capacity(json!({ "H100": 2 }), 1_500, 3_221_225_472), "baseline": 2_490_000, "saving": 470_500,
        "devices": { "model": "H100", "class": "h100", "vram": 85_899_345_920_i64, "free": 1, "total": 2 },
        "isolation": "device"
    }, {
        "host": id("host", 2), "host_name": "local-2", "runtime": "simulated", "rate": rate, "trust": "verified",
        "free": capacity(json!({}), 1_500, 1_073_741_824), "total": capacity(json!({}), 1_500, 3_221_225_472)
    }]))
}

/// A class with a list price, one with quotes of clouds, and one of which only its use is known.
pub fn classes() -> Vec<DeviceClass> {
    let baseline = |region: Value, gpu_hour: i64, listed: bool, source: &str| json!({ "region": region, "gpu_hour": gpu_hour, "listed": listed, "source": source, "fetched_at": "2026-09-21T14:12:20Z" });
    sample(json!([
        { "class": "h100-sxm", "utilisation": 850, "baselines": [
            baseline(Value::Null, 2_900_000, true, "a price page; unverified"),
            baseline(json!("europe"), 2_912_000, false, "hyperstack, lambda, verda"),
        ] },
        { "class": "l40s", "utilisation": 0, "baselines": [
            baseline(Value::Null, 790_000, false, "massed"),
        ] },
        { "class": "v100-16", "utilisation": null, "baselines": [] },
    ]))
}

/// A quote that is held.
pub fn quote() -> Quote {
    sample(json!({
        "quote": id("quote", 1), "state": "held", "request": { "argv": ["true"] }, "asked_at": "2026-09-21T14:12:20Z",
        "expires_at": "2026-09-21T14:13:20Z", "reason": null, "job": null,
        "place": {
            "host": id("host", 1), "host_name": "gpu\u{1b}-1", "region": "eu", "term": "on_demand", "trust": "verified",
            "reason": "cheapest", "devices": ["GPU-1"], "run_ms_max": 3_600_000, "hourly": 2_023_000,
            "size": { "milli_gpu": 1_000, "milli_cpu": 1_000, "memory": 1_073_741_824 },
            "rate": { "gpu_hour": 2_000_000, "vcpu_hour": 20_000, "gib_hour": 3_000 },
            "baseline": 2_490_000, "saving": 467_000
        },
        "considered": [
            { "host": id("host", 2), "host_name": "gpu-2", "hourly": 2_100_000, "code": "not_better" },
            { "host": id("host", 3), "host_name": "gpu-3", "hourly": 1_100_000, "code": "not_alone" }
        ]
    }))
}

/// A closed epoch with one idle miner.
pub fn epoch() -> Epoch {
    sample(json!({
        "epoch": 7, "state": "confirmed", "opened_at": "2026-09-21T14:00:00Z",
        "closed_at": "2026-09-21T15:12:00Z", "chain": "local",
        "delivered": { "5Alice": { "used_ms": 61_000, "value": 2_000 }, "5Idle": { "used_ms": 0, "value": 0 } },
        "weights": { "5Alice": 65_535 },
        "evidence": { "head": "cd".repeat(32), "lines": 12, "bytes": 3_456, "is_revealed": true }
    }))
}

/// A receipt of two attempts, the first on a simulated host.
pub fn receipt() -> Receipt {
    let customer = id("cus", 1);
    let posting = |kind: &str, from: String, to: String, amount: i64| {
        json!({
            "at": "2026-09-21T14:12:20Z", "kind": kind, "job": id("job", 1),
            "from": from, "to": to, "amount": amount
        })
    };
    let metered = |number: u32, runtime: &str, devices: Value, outcome: Value| {
        let mut attempt = attempt();
        if number == 2 {
            attempt["reason"] = json!("failed_elsewhere");
            attempt["baseline"] = json!(2_490_000);
            attempt["saving"] = json!(478_500);
        }
        if number == 1 {
            attempt["events"] = json!([{
                "event": id("event", 1), "at": "2026-09-21T14:13:00Z", "kind": "host_lost", "host": id("host", 1),
                "lease": id("lease", 1), "from": "2026-09-21T14:12:00Z", "until": "2026-09-21T14:13:00Z",
                "detail": "the host was silent for 60 s: the host did not come back",
                "decision": {
                    "at": "2026-09-21T15:13:00Z", "blame": "host", "confirmed_by": "absence", "signature": "00"
                }
            }]);
        }
        attempt["attempt"] = json!(number);
        attempt["charged"] = json!(if number == 1 { 0 } else { 123 });
        attempt["outcome"] = outcome;
        json!({
            "attempt": attempt, "size": { "milli_gpu": 1_000, "milli_cpu": 500, "memory": 536_870_912 },
            "rate": { "gpu_hour": 2_000_000, "vcpu_hour": 20_000, "gib_hour": 3_000 }, "devices": devices,
            "hotkey": "5Alice", "runtime": runtime, "trust": "unrated"
        })
    };
    sample(json!({
        "job": id("job", 1), "customer": customer, "state": "succeeded",
        "image": "registry/nave/python@sha256:00", "total": 123, "held": 0,
        "attempts": [
            metered(1, "simulated", json!(["SIM-1"]), json!({ "kind": "host_lost" })),
            metered(2, "docker", json!(["GPU-1"]), json!({ "kind": "exited", "code": 0 })),
        ],
        "lines": [
            posting("hold", format!("available:{customer}"), format!("held:{customer}"), 500_000),
            posting("charge", format!("held:{customer}"), "treasury".to_owned(), 123),
            posting("release", format!("held:{customer}"), format!("available:{customer}"), 499_877),
        ],
        "notice": "The owner of an unrated host can read what runs on it and forge what it returns."
    }))
}
