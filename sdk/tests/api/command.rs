//! What the command promises to people and scripts.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::stub::{JOB, Reply, Seen, Stub, attempt, end, job, log, nowhere};

const NAVE: &str = env!("CARGO_BIN_EXE_nave");

fn nave(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(NAVE);
    command.args(args).env("NAVE_URL", url).env("NAVE_TOKEN", "nave_secret");
    command.env("XDG_CONFIG_HOME", "/nonexistent").stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn output(url: &str, args: &[&str]) -> Output {
    nave(url, args).output().await.expect("nave runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON document on stdout")
}

/// An API with one job that writes `events` and then ends as `last`.
fn one_job(events: String, last: Value) -> impl Fn(usize, &Seen) -> Reply + Send + Sync {
    move |_, seen| match seen.call().as_str() {
        "POST /v1/jobs" => Reply { status: 201, ..Reply::json(&job("queued", None)) },
        call if call.ends_with("/logs") => Reply::events(&format!("{events}{}", end(&last))),
        call if call == format!("GET /v1/jobs/{JOB}") => Reply::json(&last),
        _ => Reply::problem(404, "not_found"),
    }
}

#[tokio::test]
async fn a_run_passes_output_through_and_exits_with_the_jobs_code() {
    let events =
        log(1, 1, "stdout", "out \u{1b}[1m") + &log(2, 1, "stderr", "err\n") + &log(3, 1, "stdout", "more");
    let stub = Stub::start(one_job(events, job("failed", Some(3)))).await;
    let output = output(&stub.url, &["run", "--", "true"]).await;
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&output.stdout), "out \u{1b}[1mmore");
    let last =
        format!("nave: failed (exit code 3); cost $0.000123 for 3.100 s on local-1; nave receipt {JOB}\n");
    assert_eq!(text(&output.stderr), format!("err\n{last}"));
}

#[tokio::test]
async fn every_run_has_an_idempotency_key_of_its_own_unless_one_is_given() {
    let stub = Stub::start(one_job(String::new(), job("succeeded", Some(0)))).await;
    for args in
        [&["run", "--", "true"][..], &["run", "--", "true"], &["run", "--idempotency-key", "k", "--", "true"]]
    {
        assert!(output(&stub.url, args).await.status.success());
    }
    let seen = stub.seen();
    let keys: Vec<&str> = seen.iter().filter_map(|seen| seen.header("idempotency-key")).collect();
    assert!(keys.len() == 3 && keys[0] != keys[1] && keys[2] == "k", "{keys:?}");
}

#[tokio::test]
async fn a_run_with_json_prints_one_document_with_job_and_logs() {
    let stub = Stub::start(one_job(log(1, 1, "stdout", "hi"), job("succeeded", Some(0)))).await;
    let output = output(&stub.url, &["run", "--json", "--", "true"]).await;
    assert!(output.status.success());
    let document = document(&output);
    assert_eq!((&document["job"], &document["logs"][0]["text"]), (&json!(JOB), &json!("hi")));
    assert_eq!(text(&output.stderr), "");
}

#[tokio::test]
async fn a_further_attempt_is_marked_on_stderr() {
    let mut last = job("succeeded", Some(0));
    let exited = |code: i32| json!({ "kind": "exited", "code": code });
    last["attempts"] = json!([attempt(1, "a", &exited(1)), attempt(2, "b", &exited(0))]);
    let stub = Stub::start(one_job(log(1, 1, "stdout", "1") + &log(2, 2, "stdout", "2"), last)).await;
    let output = output(&stub.url, &["run", "--", "true"]).await;
    assert!(text(&output.stderr).starts_with("nave: attempt 2 on b\n"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_detached_run_prints_the_id_and_does_not_wait() {
    let stub = Stub::start(one_job(String::new(), job("queued", None))).await;
    let output = output(&stub.url, &["run", "--detach", "--", "true"]).await;
    assert_eq!((text(&output.stdout), output.status.code()), (format!("{JOB}\n").as_str(), Some(0)));
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn the_first_interrupt_cancels_the_job_and_waits_for_its_end() {
    let cancelled = |seen: &[Seen]| seen.iter().any(|seen| seen.call().ends_with("/cancel"));
    let marker = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ended = std::sync::Arc::clone(&marker);
    let stub = Stub::start(move |_, seen| match seen.call().as_str() {
        "POST /v1/jobs" => Reply { status: 201, ..Reply::json(&job("running", None)) },
        call if call.ends_with("/cancel") => {
            ended.store(true, std::sync::atomic::Ordering::SeqCst);
            Reply::json(&job("cancelling", None))
        }
        call if call.ends_with("/logs") && ended.load(std::sync::atomic::Ordering::SeqCst) => {
            Reply::events(&end(&job("cancelled", None)))
        }
        call if call.ends_with("/logs") => Reply::events(": nothing yet\n\n"),
        _ => Reply::json(&job("running", None)),
    })
    .await;
    let mut command = nave(&stub.url, &["run", "--", "sleep", "60"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nave runs");
    let pid = child.id().expect("a process id");
    while stub.seen().len() < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let kill = format!("kill -INT {pid}");
    assert!(Command::new("sh").args(["-c", &kill]).status().await.expect("sh runs").success());
    let output = child.wait_with_output().await.expect("nave ends");
    assert_eq!(output.status.code(), Some(103));
    assert!(text(&output.stderr).contains("interrupted: cancelling"), "{}", text(&output.stderr));
    assert!(cancelled(&stub.seen()));
}

#[tokio::test]
async fn output_that_nobody_reads_cancels_the_job() {
    let stub = Stub::start(one_job(log(1, 1, "stdout", "x"), job("cancelled", None))).await;
    let script = format!("{NAVE} run -- yes | true; exit ${{PIPESTATUS[0]}}");
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).env("NAVE_URL", &stub.url).env("XDG_CONFIG_HOME", "/nonexistent");
    let status = shell.stderr(Stdio::null()).status().await.expect("bash runs");
    assert_eq!(status.code(), Some(103));
}

#[tokio::test]
async fn a_job_that_does_not_exist_has_an_exit_code_and_a_document() {
    let stub = Stub::start(|_, _| Reply::problem(404, "job_not_found")).await;
    for command in ["logs", "receipt", "result", "cancel"] {
        let plain = output(&stub.url, &[command, JOB]).await;
        assert_eq!((plain.status.code(), text(&plain.stdout)), (Some(102), ""), "{command}");
        assert!(text(&plain.stderr).contains("job_not_found happened\ntry: do something else"), "{command}");
        let json = output(&stub.url, &[command, "--json", JOB]).await;
        assert_eq!((json.status.code(), &document(&json)["code"]), (Some(102), &json!("job_not_found")));
    }
}

/// An API with as many jobs as are submitted; each says what its number says.
fn replicas(says: fn(usize) -> (&'static str, i32)) -> impl Fn(usize, &Seen) -> Reply + Send + Sync {
    let submitted = std::sync::atomic::AtomicUsize::new(0);
    move |_, seen| {
        let call = seen.call();
        let named = |number: usize, exit: i32| {
            let mut job = job(if exit == 0 { "succeeded" } else { "failed" }, Some(exit));
            job["job"] = json!(format!("job_{number:032}"));
            job["attempts"] =
                json!([attempt(1, &format!("host-{number}"), &json!({ "kind": "exited", "code": exit }))]);
            job
        };
        if call == "POST /v1/jobs" {
            let number = submitted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
            let mut queued = named(number, 0);
            (queued["state"], queued["exit_code"]) = (json!("queued"), Value::Null);
            return Reply { status: 201, ..Reply::json(&queued) };
        }
        let id = call.split("job_").nth(1).expect("a job").split('/').next().expect("a number");
        let number: usize = id.parse().expect("a number");
        let (text, exit) = says(number);
        if !call.ends_with("/logs") {
            return Reply::json(&named(number, exit));
        }
        let line = json!({ "at": "2026-09-21T14:12:21Z", "attempt": 1, "stream": "stdout", "text": text });
        let lines = if seen.query().is_empty() { json!([line]) } else { json!([]) };
        Reply::json(&json!({ "lines": lines, "cursor": "1", "complete": true }))
    }
}

#[tokio::test]
async fn replicas_that_agree_are_one_run() {
    let stub = Stub::start(replicas(|_| ("42\n", 3))).await;
    let output = output(&stub.url, &["run", "--replicas", "3", "--", "true"]).await;
    assert_eq!((text(&output.stdout), output.status.code()), ("42\n", Some(3)));
    let said = text(&output.stderr);
    assert!(
        (1..=3).all(|n| said.contains(&format!("replica {n} agrees"))) && said.contains("host-3"),
        "{said}"
    );
    let seen = stub.seen();
    let posted: Vec<&Seen> = seen.iter().filter(|seen| seen.call() == "POST /v1/jobs").collect();
    let apart = |seen: &Seen| serde_json::from_slice::<Value>(&seen.body).expect("JSON")["apart"].clone();
    assert!(apart(posted[0]).is_string() && posted.iter().all(|one| apart(one) == apart(posted[0])));
    let keys: std::collections::BTreeSet<_> =
        posted.iter().map(|seen| seen.header("idempotency-key")).collect();
    assert_eq!(keys.len(), 3);
}

#[tokio::test]
async fn a_replica_that_differs_is_named_and_has_an_exit_code_of_its_own() {
    let forged = |number: usize| if number == 2 { ("41\n", 0) } else { ("42\n", 0) };
    let stub = Stub::start(replicas(forged)).await;
    let plain = output(&stub.url, &["run", "--replicas", "3", "--", "true"]).await;
    assert_eq!((text(&plain.stdout), plain.status.code()), ("", Some(107)));
    assert!(
        text(&plain.stderr).contains("replica 2 differs") && text(&plain.stderr).contains("replica 3 agrees")
    );
    let stub = Stub::start(replicas(forged)).await;
    let json = output(&stub.url, &["run", "--json", "--replicas", "2", "--", "true"]).await;
    let document = document(&json);
    assert_eq!((json.status.code(), &document["agree"]), (Some(107), &json!(false)));
    assert_eq!((&document["replicas"][1]["answer"], &document["stdout"]), (&json!("differs"), &Value::Null));
}

#[tokio::test]
async fn a_replica_that_is_not_accepted_cancels_the_others() {
    let stub = Stub::start(|earlier, seen| match seen.call().as_str() {
        "POST /v1/jobs" if earlier == 0 => Reply { status: 201, ..Reply::json(&job("queued", None)) },
        "POST /v1/jobs" => Reply::problem(402, "balance_too_low"),
        _ => Reply::json(&job("cancelled", None)),
    })
    .await;
    let output = output(&stub.url, &["run", "--replicas", "2", "--", "true"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(stub.seen().last().map(Seen::call), Some(format!("POST /v1/jobs/{JOB}/cancel")));
}

#[tokio::test]
async fn a_dispute_is_opened_with_a_reason_and_looked_at_without() {
    let dispute = json!({
        "attempt": 1, "host": "host_00000000000000000000000000000001", "reason": "41", "state": "open",
        "opened_at": "2026-09-21T15:00:00Z", "decided_at": null, "verdict": null
    });
    let answer = dispute.clone();
    let stub = Stub::start(move |_, seen| {
        if seen.call() == format!("POST /v1/jobs/{JOB}/dispute") {
            return Reply { status: 201, ..Reply::json(&answer) };
        }
        let mut disputed = job("succeeded", Some(0));
        disputed["disputes"] = json!([answer]);
        Reply::json(&disputed)
    })
    .await;
    let opened = output(&stub.url, &["dispute", JOB, "--reason", "41"]).await;
    assert!(opened.status.success() && text(&opened.stdout).contains("open: its host is tested"));
    let body: Value = serde_json::from_slice(&stub.seen()[0].body).expect("JSON");
    assert_eq!(body, json!({ "reason": "41" }));
    let looked = output(&stub.url, &["dispute", JOB, "--json"]).await;
    assert_eq!(document(&looked), json!([dispute]));
    let refused = Stub::start(|_, _| Reply::problem(409, "dispute_too_late")).await;
    let late = output(&refused.url, &["dispute", JOB, "--reason", "41"]).await;
    assert_eq!(late.status.code(), Some(1));
    assert!(text(&late.stderr).contains("dispute_too_late happened\ntry: "), "{}", text(&late.stderr));
}

#[tokio::test]
async fn json_is_what_the_api_said() {
    let page = json!({ "items": [job("running", None)], "next": null });
    let sent = page.clone();
    let stub = Stub::start(move |_, _| Reply::json(&sent)).await;
    let printed = document(&output(&stub.url, &["ps", "--json"]).await);
    assert_eq!(printed["items"][0]["attempts"], page["items"][0]["attempts"]);
    assert_eq!(printed["items"][0]["state"], "running");
    let table = output(&stub.url, &["ps"]).await;
    assert!(text(&table.stdout).starts_with("JOB "), "{}", text(&table.stdout));
}

#[tokio::test]
async fn a_log_is_read_to_its_present_end_and_not_followed() {
    let stub = Stub::start(|_, seen| {
        let line = |text: &str| json!({ "at": "2026-09-21T14:12:21Z", "attempt": 1, "stream": "stdout", "text": text });
        let lines = match seen.query() {
            "tail=2" => json!([line("a"), line("b")]),
            "after=1" => json!([line("c")]),
            _ => json!([]),
        };
        let cursor = if seen.query() == "tail=2" { "1" } else { "2" };
        Reply::json(&json!({ "lines": lines, "cursor": cursor, "complete": false }))
    })
    .await;
    let output = output(&stub.url, &["logs", JOB, "--tail", "2"]).await;
    assert_eq!((text(&output.stdout), output.status.code()), ("abc", Some(0)));
}

#[tokio::test]
async fn a_run_says_that_result_files_were_left_out() {
    let mut last = job("succeeded", Some(0));
    last["result_truncated"] = json!(true);
    let stub = Stub::start(one_job(String::new(), last)).await;
    let plain = output(&stub.url, &["run", "--", "true"]).await;
    let said: Vec<&str> = text(&plain.stderr).split_inclusive('\n').collect();
    assert_eq!((said.len(), said[0]), (2, LEFT_OUT));
    let json = output(&stub.url, &["run", "--json", "--", "true"]).await;
    assert_eq!((text(&json.stderr), &document(&json)["result_truncated"]), ("", &json!(true)));
}

const LEFT_OUT: &str = "nave: some result files were left out: 32 MiB and 65536 files and directories come back at most; \
    let the job pack many files into one, and send what is larger elsewhere\n";

#[tokio::test]
async fn result_files_are_unpacked_and_listed() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    builder.append_data(&mut header, "model/weights.bin", &b"hello"[..]).expect("appended");
    let archive = builder.into_inner().expect("an archive");
    let stub = Stub::start(move |_, seen| {
        if seen.call().ends_with("/result") {
            return Reply::new(200, "application/x-tar", archive.clone());
        }
        let mut job = job("succeeded", Some(0));
        job["has_result"] = json!(true);
        job["result_truncated"] = json!(true);
        Reply::json(&job)
    })
    .await;
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("out");
    let first = output(&stub.url, &["result", JOB, "-o", out.to_str().expect("UTF-8")]).await;
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(text(&first.stderr), LEFT_OUT);
    assert_eq!(fs::read_to_string(out.join("model/weights.bin")).expect("the file"), "hello");
    let again = output(&stub.url, &["result", JOB, "-o", out.to_str().expect("UTF-8")]).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("exists already"), "{}", text(&again.stderr));
}

#[tokio::test]
async fn a_control_plane_that_is_not_there_is_said_soon_and_with_advice() {
    let url = format!("http://{}", nowhere().await);
    let output = output(&url, &["ps"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains("Connection refused") && said.contains("try: ") && said.contains("nave up"),
        "{said}"
    );
}

#[tokio::test]
async fn without_configuration_the_command_says_how_to_get_one() {
    let output = nave("", &["ps"]).env_remove("NAVE_URL").output().await.expect("nave runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nave up"));
}

#[tokio::test]
async fn the_configuration_file_names_api_and_token() {
    let stub = Stub::start(|_, _| Reply::json(&json!([]))).await;
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("nave")).expect("made");
    let file = format!("url = \"{}\"\ntoken = \"nave_filed\"\n", stub.url);
    fs::write(dir.path().join("nave/config.toml"), file).expect("written");
    let mut command = nave("", &["hosts"]);
    command.env_remove("NAVE_URL").env_remove("NAVE_TOKEN").env("XDG_CONFIG_HOME", dir.path());
    assert!(command.output().await.expect("nave runs").status.success());
    assert_eq!(stub.seen()[0].header("authorization"), Some("Bearer nave_filed"));
}

#[tokio::test]
async fn nothing_irreversible_happens_unasked() {
    let stub = Stub::start(|_, _| Reply::new(204, "text/plain", "")).await;
    let key = "key_00000000000000000000000000000001";
    assert_eq!(output(&stub.url, &["keys", "revoke", key]).await.status.code(), Some(2));
    assert_eq!(stub.seen().len(), 0);
    assert!(output(&stub.url, &["keys", "revoke", "-y", key]).await.status.success());
    assert_eq!(stub.seen()[0].call(), format!("DELETE /v1/keys/{key}"));
}

#[tokio::test]
async fn the_doctor_passes_only_a_market_that_works() {
    let answer = |hosts: Value| {
        move |_, seen: &Seen| match seen.uri.path() {
            "/v1/health" => Reply::json(
                &json!({ "status": "ok", "version": "0.1.0", "problems": [], "default_image": "i" }),
            ),
            "/v1/balance" => Reply::json(
                &json!({ "customer": "cus_00000000000000000000000000000001", "available": 5, "held": 0 }),
            ),
            _ => Reply::json(&hosts),
        }
    };
    let ready = json!([{
        "host": "host_00000000000000000000000000000001", "name": "a", "hotkey": "5F", "state": "ready",
        "trust": "unrated", "inventory": null, "rate": { "gpu_hour": 0, "vcpu_hour": 0, "gib_hour": 0 },
        "heard_at": null, "leases": 0
    }]);
    let works = Stub::start(answer(ready)).await;
    assert!(output(&works.url, &["doctor"]).await.status.success());
    let empty = Stub::start(answer(json!([]))).await;
    let sick = output(&empty.url, &["doctor", "--json"]).await;
    assert_eq!((sick.status.code(), &document(&sick)["ok"]), (Some(1), &json!(false)));
}

#[tokio::test]
async fn up_becomes_naved_with_everything_that_follows() {
    let dir = tempfile::tempdir().expect("a directory");
    let (copy, naved) = (dir.path().join("nave"), dir.path().join("naved"));
    fs::copy(NAVE, &copy).expect("copied");
    fs::write(&naved, "#!/bin/sh\necho \"$@\"\nexit 7\n").expect("written");
    fs::set_permissions(&naved, fs::Permissions::from_mode(0o755)).expect("made executable");
    let output =
        Command::new(&copy).args(["up", "--hosts", "2", "--json", "--help"]).output().await.expect("runs");
    assert_eq!((text(&output.stdout), output.status.code()), ("up --hosts 2 --json --help\n", Some(7)));
}

#[tokio::test]
async fn wrong_usage_exits_with_2() {
    for args in [
        &["run"][..],
        &["frobnicate"],
        &["run", "--replicas", "6", "--", "true"],
        &["logs", "not-a-job"],
        &["run", "--memory", "1", "--", "true"],
    ] {
        assert_eq!(output("http://127.0.0.1:1", args).await.status.code(), Some(2), "{args:?}");
    }
}

#[tokio::test]
async fn completions_name_every_command() {
    let output = output("http://127.0.0.1:1", &["completions", "bash"]).await;
    assert!(output.status.success() && text(&output.stdout).contains("receipt"));
}
