//! Parts of GPUs: shares of one customer's, and slices for anybody. The GPUs are simulated, and so is what holds a
//! job to its part of one: nothing here says what a GPU would do.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{Market, succeed, wait_for};

/// A share of a GPU, and little else of a host.
const SHARE: [&str; 10] =
    ["--vram", "8GiB", "--share", "0.25", "--trust", "verified,unrated", "--cpu", "0.1", "--memory", "64MiB"];
const GIB: i64 = 1 << 30;

/// Gives the local host a GPU of 32 GiB that is shared, and one with a slice of 4 GiB.
fn give(data: &Path) {
    let device = |uuid: &str, division: Value| {
        json!({
            "uuid": uuid, "model": "Nave Simulated", "vram": 32 * GIB, "ops_per_s": 1 << 26, "bytes_per_s": 1 << 19,
            "reads_per_s": 1 << 17, "hashes_per_s": 1 << 19, "return_bytes_per_s": 1 << 18, "division": division,
        })
    };
    let slice = json!({ "uuid": "SIM-slice", "profile": "1g.4gb", "milli": 142, "vram": 4 * GIB });
    let devices = [device("SIM-shared", json!("shares")), device("SIM-cut", json!({ "slices": [slice] }))];
    let dir = data.join("agent");
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join("simulated-devices.json"), serde_json::to_vec(&devices).expect("JSON"))
        .expect("written");
}

/// Somebody who uses the market.
struct Customer<'a> {
    market: &'a Market,
    token: Option<String>,
}

impl Customer<'_> {
    fn json(&self, arguments: &[&str]) -> Value {
        let mut command = self.market.nave(arguments);
        command.arg("--json").envs(self.token.iter().map(|token| ("NAVE_TOKEN", token)));
        serde_json::from_str(&succeed(&mut command)).expect("JSON")
    }

    /// A job that goes on until it is cancelled, or for so many milliseconds.
    fn submit(&self, options: &[&str], ms: Option<u32>) -> String {
        let lasts = format!("NAVE_SIM_MS={}", ms.unwrap_or(3_600_000));
        let argv = [&["run", "--json", "--detach", "-e", &lasts], options, &["--", "true"]].concat();
        let mut command = self.market.nave(&argv);
        command.envs(self.token.iter().map(|token| ("NAVE_TOKEN", token)));
        let job: Value = serde_json::from_str(&succeed(&mut command)).expect("JSON");
        job["job"].as_str().expect("an id").to_owned()
    }

    fn await_job(&self, job: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{job} to be {what}"), || {
            let list = self.json(&["ps"]);
            let found = list["items"].as_array()?.iter().find(|item| item["job"] == job)?.clone();
            is_so(&found).then_some(found)
        })
    }

    fn await_state(&self, job: &str, state: &str) -> Value {
        self.await_job(job, state, |job| job["state"] == state)
    }

    /// What its first attempt got and what it costs an hour, which is the price of just that.
    fn got(&self, job: &str) -> (String, i64) {
        let receipt = self.json(&["receipt", job]);
        let attempt = &receipt["attempts"][0];
        let number = |value: &Value| value.as_i64().expect("a number");
        let (size, rate) = (&attempt["size"], &attempt["rate"]);
        let part = |amount: &str, price: &str, whole: i64| {
            i128::from(number(&size[amount]))
                * i128::from(number(&rate[price]))
                * i128::from(GIB * 1_000 / whole)
        };
        let hourly = part("milli_gpu", "gpu_hour", 1_000)
            + part("milli_cpu", "vcpu_hour", 1_000)
            + part("memory", "gib_hour", GIB);
        assert_eq!(i128::from(number(&attempt["attempt"]["hourly"])), hourly / i128::from(GIB * 1_000));
        let devices = attempt["devices"].as_array().expect("devices");
        assert_eq!(devices.len(), 1, "{receipt}");
        (devices[0].as_str().expect("text").to_owned(), number(&size["milli_gpu"]))
    }

    /// How many shares of that size it could have.
    fn free(&self) -> i64 {
        let offers = self.json(&["offers", "--vram", "8GiB", "--share", "0.25"]);
        let free = |offer: &Value| offer["fraction"]["free"].as_i64();
        offers.as_array().expect("offers").iter().filter_map(free).sum()
    }
}

#[test]
fn jobs_of_one_customer_share_a_simulated_gpu_and_nobody_elses_do() {
    let image = format!("example.org/none@sha256:{}", "0".repeat(64));
    let arguments = ["--simulated-devices", "2", "--enforce", "cpu,memory", "--default-image", &image];
    let Some(market) = Market::simulated_after(&arguments, give) else { return };
    succeed(market.naved().args(["admin", "credit", "eve", "10", "--key", "journey"]));
    let token = succeed(market.naved().args(["admin", "key", "eve"])).trim().to_owned();
    let ada = Customer { market: &market, token: None };
    let eve = Customer { market: &market, token: Some(token) };
    wait_for("the shares to be offered", || (ada.free() == 3).then_some(()));

    let both = [ada.submit(&SHARE, None), ada.submit(&SHARE, None)];
    for job in &both {
        ada.await_state(job, "running");
        assert_eq!(ada.got(job), ("SIM-shared".to_owned(), 250), "a quarter of one and the same");
    }
    assert_eq!((ada.free(), eve.free()), (1, 0));

    let waits = eve.submit(&SHARE, Some(100));
    let waiting = eve.await_job(&waits, "waiting", |job| job["reason"]["code"].is_string());
    assert_eq!(waiting["reason"]["code"], "waiting_for_capacity", "{waiting}");
    let small = [&["--vram", "4GiB", "--share", "0.1"], &SHARE[4..]].concat();
    let on_slice = eve.submit(&small, None);
    eve.await_state(&on_slice, "running");
    assert_eq!(eve.got(&on_slice), ("SIM-slice".to_owned(), 142), "slices may be anybody's");

    // The simulated agent ends what says that it holds more than its share, as a real one does what is seen to.
    let holds = |gib: i64| format!("NAVE_SIM_VRAM={}", gib * GIB);
    let greedy = ada.submit(&[&SHARE[..], &["-e", &holds(9)]].concat(), None);
    let ended = ada.await_state(&greedy, "failed");
    assert_eq!(ended["reason"]["code"], "out_of_gpu_memory", "{ended}");
    let modest = ada.submit(&[&SHARE[..], &["-e", &holds(8)]].concat(), Some(2_000));
    ada.await_state(&modest, "succeeded");

    let quote = ada.json(&[&["quote", "--hold", "5m"], &SHARE[..]].concat());
    assert_eq!(quote["place"]["share"], json!({ "milli": 250, "vram": 8 * GIB }), "{quote}");
    assert_eq!(ada.free(), 0, "a quote holds its share");
    let on_quote = ada.submit(&["--quote", quote["quote"].as_str().expect("an id")], Some(100));
    let done = ada.await_state(&on_quote, "succeeded");
    assert_eq!(done["attempts"][0]["hourly"], quote["place"]["hourly"]);
    assert_eq!(ada.got(&on_quote), ("SIM-shared".to_owned(), 250));

    eve.await_state(&waits, "queued");
    for (customer, job) in [(&ada, &both[0]), (&ada, &both[1]), (&eve, &on_slice)] {
        customer.json(&["cancel", job]);
        customer.await_state(job, "cancelled");
    }
    eve.await_state(&waits, "succeeded");
    assert_eq!(eve.got(&waits), ("SIM-shared".to_owned(), 250), "once nobody else is on it");
    assert_eq!((ada.free(), eve.free()), (3, 3), "nothing is left");
    assert!(market.all_hosts().iter().all(|host| host["leases"] == 0), "{:?}", market.all_hosts());
    market.audit();
}
