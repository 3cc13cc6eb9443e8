//! Quotes: a place that is held at its price.

use serde_json::Value;

use crate::support::{Market, succeed};

#[test]
fn a_quoted_place_is_kept_from_others_and_used_once_or_given_back() {
    let all = ["--cpu", "1"];
    let image = format!("example.org/none@sha256:{}", "0".repeat(64));
    let Some(market) = Market::simulated(&["--cpu", "1", "--default-image", &image]) else { return };
    let quote = |hold: &str| -> Value {
        let mut options = vec!["quote", "--json", "--hold", hold];
        options.extend(all);
        serde_json::from_str(&succeed(&mut market.nave(&options))).expect("a quote")
    };

    let held = quote("5m");
    assert_eq!(held["state"], "held", "{held}");
    let id = held["quote"].as_str().expect("an id");
    let waits = market.submit(&all, &["true"]);
    market.await_job(&waits, "waiting", |job| job["reason"]["code"].is_string());
    let used = market.submit(&["--quote", id], &["true"]);
    let done = market.await_final(&used);
    assert_eq!((&done["state"], &done["attempts"][0]["reason"]), (&"succeeded".into(), &"quoted".into()));
    assert_eq!(done["attempts"][0]["hourly"], held["place"]["hourly"], "at its price");
    let again = market.nave(&["run", "--quote", id, "--", "true"]).output().expect("run it");
    assert!(String::from_utf8_lossy(&again.stderr).contains("was used by"), "{again:?}");
    assert_eq!(market.await_final(&waits)["state"], "succeeded", "once the place is free");

    let unused = quote("5m");
    let id = unused["quote"].as_str().expect("an id");
    succeed(&mut market.nave(&["quote", "--release", id]));
    assert_eq!(market.run(&all, &["true"])["state"], "succeeded", "nothing is held any more");
    market.audit();
}
