//! Verdicts, as owners, hosts and everyone see them.

use std::fs;

use serde_json::Value;

use crate::support::{Market, succeed, wait_for};

#[test]
fn a_refused_host_its_owner_and_everyone_see_the_same_reason_and_anyone_judges_it_again() {
    let Some(market) = Market::simulated(&["--hosts", "2", "--cpu", "1.5"]) else { return };
    let cores = std::thread::available_parallelism().expect("cores").get() * 8;
    let liar = market.stranger("liar", &["--cpu", &cores.to_string(), "--memory", "64MiB"]);
    let refused = market.await_host(&liar.id, "refused");
    let why = refused["reason"]["message"].as_str().expect("words").to_owned();
    assert!(why.contains(&format!("claims {cores} cores, proved ")), "{why}");

    let owner = succeed(&mut market.miner(&["verdicts", "liar"]));
    assert!(owner.contains(&format!("{why} (cpu_overclaimed)")), "its owner sees it with numbers: {owner}");
    assert!(owner.contains("offer fewer cores"), "{owner}");
    wait_for("the host itself to tell why", || {
        let mut verify = market.program("miner-agent");
        let said = verify.args(["verify", "--explain", "--data"]).arg(&liar.data).output().expect("run it");
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(!text.contains("does not tell now"), "{text}");
        let tells = text.contains(&why) && text.contains("offer fewer cores");
        (tells && !said.status.success()).then_some(())
    });

    let listed = market.json(&["hosts", "verdicts", "liar"]);
    let verdicts = listed["items"].as_array().expect("verdicts");
    let failed = verdicts.iter().find(|verdict| verdict["code"] == "cpu_overclaimed").expect("the failure");
    let id = failed["challenge"].as_str().expect("an id");
    let file = liar.data.join("verdict.json");
    let published = succeed(market.nave(&["hosts", "verdict", &liar.id, id]).arg("--json"));
    fs::write(&file, &published).expect("written");
    let judged = succeed(market.nave(&["judge"]).arg(&file));
    assert!(judged.contains("the same ruling"), "{judged}");
    // A market that had said something else would be found out.
    fs::write(&file, published.replace("cpu_overclaimed", "evidence_wrong")).expect("written");
    let judged = market.nave(&["judge"]).arg(&file).output().expect("run nave");
    assert_eq!(judged.status.code(), Some(105), "{judged:?}");

    let honest = market.hosts().remove(0);
    let passed = market.json(&["hosts", "verdicts", honest.id()]);
    let passed = passed["items"].as_array().expect("verdicts").clone();
    let is_open = |one: &&Value| one["code"] == "passed" && one["opening"] == "kept";
    let judged = passed.iter().filter(is_open).map(|verdict| {
        let id = verdict["challenge"].as_str().expect("an id");
        let published = succeed(market.nave(&["hosts", "verdict", honest.id(), id]).arg("--json"));
        fs::write(&file, published).expect("written");
        succeed(market.nave(&["judge"]).arg(&file))
    });
    let judged: Vec<String> = judged.collect();
    assert!(judged.len() >= 2 && judged.iter().all(|one| one.contains("the same ruling")), "{judged:?}");

    // It is refused for what it was, and not because of a judge.
    let appealed = succeed(&mut market.miner(&["appeal", "liar", id]));
    assert!(appealed.contains("appeal"), "{appealed}");
    wait_for("the appeal to be judged", || {
        let said = succeed(&mut market.miner(&["appeal", "liar", id]));
        said.contains("judged again on appeal: claims").then_some(())
    });
}
