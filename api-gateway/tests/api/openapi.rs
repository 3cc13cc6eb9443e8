//! The API's description, and that it is the one checked in.

use std::{env, fs, path::PathBuf};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json")
}

#[test]
fn the_description_checked_in_is_that_of_this_code() {
    let fresh = nave_gateway::openapi();
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(golden(), &fresh).expect("write docs/openapi.json");
    }
    let kept = fs::read_to_string(golden()).expect("read docs/openapi.json");
    assert!(kept == fresh, "docs/openapi.json is out of date: run this test with UPDATE_GOLDEN=1");
}

#[test]
fn every_call_says_what_it_is_for_and_how_it_is_refused() {
    let document: serde_json::Value = serde_json::from_str(&nave_gateway::openapi()).expect("JSON");
    assert_eq!(document["openapi"], "3.1.0");
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, call) in item.as_object().expect("a path") {
            assert!(call["operationId"].is_string() && call["summary"].is_string(), "{method} {path}");
            let refused = &call["responses"]["default"]["content"]["application/problem+json"];
            assert_eq!(refused["schema"]["$ref"], "#/components/schemas/Problem", "{method} {path}");
        }
    }
}
