//! Jobs through a whole market with one host.

use std::{fs, net::TcpListener, process::Command, thread, time::Duration};

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

use crate::{
    TICKS,
    support::{Market, find_process, find_processes, kill, succeed, wait_for},
    ticks,
};

const SUM: &str = "print(sum(i*i for i in range(10**6)))";

#[test]
fn a_job_prints_its_number_and_its_receipt_adds_up() {
    let Some(market) = Market::docker(&[]) else { return };
    let output = market.nave(&["run", "--", "python3", "-c", SUM]).output().expect("run nave");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "333332833333500000\n", "{said}");
    assert_eq!(output.status.code(), Some(0), "{said}");

    let list = market.json(&["ps"]);
    let job = list["items"][0]["job"].as_str().expect("a job").to_owned();
    let receipt = market.receipt(&job);
    let amount = |kind: &str| -> i64 {
        let lines = receipt["lines"].as_array().expect("lines");
        lines
            .iter()
            .filter(|line| line["kind"] == kind)
            .map(|line| line["amount"].as_i64().expect("amount"))
            .sum()
    };
    assert_eq!(receipt["state"], "succeeded");
    assert_eq!(amount("charge"), receipt["total"].as_i64().expect("total"));
    assert_eq!(
        amount("hold"),
        amount("charge") + amount("release"),
        "what was held is charged or given back"
    );
    assert!(receipt["image"].as_str().expect("an image").contains("@sha256:"), "{receipt}");
    assert_eq!(receipt["attempts"][0]["runtime"], "docker");
    market.audit();
}

#[test]
fn a_job_exits_with_its_own_code_and_leaves_its_result_files() {
    let Some(market) = Market::docker(&[]) else { return };
    let output = market.nave(&["run", "--", "sh", "-c", "echo oops >&2; exit 7"]).output().expect("run nave");
    assert_eq!(output.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&output.stderr).contains("oops"));

    let write = "mkdir -p $NAVE_OUT/a && echo 42 > $NAVE_OUT/a/answer && ln -s /etc/passwd $NAVE_OUT/link";
    let job = market.run(&[], &["sh", "-c", write]);
    let into = tempfile::tempdir().expect("a directory");
    let to = into.path().to_str().expect("a path");
    succeed(&mut market.nave(&["result", job["job"].as_str().expect("an id"), "-o", to]));
    assert_eq!(fs::read_to_string(into.path().join("a/answer")).expect("the file"), "42\n");
    assert!(!into.path().join("link").exists(), "links stay where they are");
}

#[test]
fn limits_end_a_job_and_say_which() {
    let Some(market) = Market::docker(&[]) else { return };
    let reason = |options: &[&str], argv: &[&str]| {
        let job = market.run(options, argv);
        assert_eq!(job["state"], "failed", "{job}");
        (
            job["reason"]["code"].as_str().expect("a code").to_owned(),
            job["attempts"].as_array().expect("attempts").len(),
        )
    };
    assert_eq!(reason(&["--run-limit", "1s"], &["sleep", "60"]), ("run_timeout".into(), 1));
    assert_eq!(reason(&["--max-spend", "0.000010"], &["sleep", "60"]), ("spend_cap".into(), 1));
    assert_eq!(reason(&["--queue-limit", "1s", "--cpu", "512"], &["true"]), ("queue_timeout".into(), 0));
    assert_eq!(reason(&["--retries", "2"], &["false"]), ("exited".into(), 3));
    assert_eq!(
        reason(&["--memory", "32MiB"], &["python3", "-c", "x = b'x' * 10**9"]),
        ("out_of_memory".into(), 1)
    );
    let digest = format!("x@sha256:{}", "0".repeat(64));
    let absent = market.submit(&["--image", &format!("127.0.0.1:9/{digest}")], &["true"]);
    market.await_job(&absent, "tried", |job| job["attempts"][0]["outcome"]["kind"] == "start_failed");
    succeed(&mut market.nave(&["cancel", &absent]));
    market.await_final(&absent);
    // Takes connections and never answers, so that a pull hangs.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let image = format!("{}/{digest}", silent.local_addr().expect("its address"));
    assert_eq!(reason(&["--image", &image, "--start-limit", "1s"], &["true"]), ("start_timeout".into(), 1));
    let unknown = market.run(&[], &["no-such-command"]);
    assert_eq!(unknown["exit_code"], 127, "as a shell says it: {unknown}");
    let job = market.run(&["--disk", "32MiB"], &["sh", "-c", "dd if=/dev/zero of=/work/f bs=1M count=64"]);
    assert_eq!(job["reason"]["code"], "exited", "the working directory is bounded: {job}");
    let receipt = market.receipt(job["job"].as_str().expect("an id"));
    assert_eq!(receipt["held"], 0);
    assert_eq!(market.json(&["balance"])["held"], 0, "nothing stays held");
    market.audit();
}

#[test]
fn a_cancelled_job_ends_and_what_it_did_not_use_comes_back() {
    let Some(market) = Market::docker(&[]) else { return };
    let job = market.submit(&[], &["sleep", "600"]);
    market.await_job(&job, "running", |document| document["state"] == "running");
    succeed(&mut market.nave(&["cancel", &job]));
    assert_eq!(market.await_final(&job)["state"], "cancelled");
    assert_eq!(market.json(&["balance"])["held"], 0);
    let never = market.submit(&["--cpu", "512"], &["true"]);
    succeed(&mut market.nave(&["cancel", &never]));
    assert_eq!(market.await_final(&never)["state"], "cancelled");
    market.audit();
}

#[test]
fn killing_any_one_process_does_not_change_the_outcome() {
    let Some(market) = Market::docker(&["--report", "1s"]) else { return };
    let roles = ["gateway", "hub", "scheduler", "verifier", "validator", "treasury"];
    let others = ["agent", "postgres", "registry", "dockerd", "containerd"];
    let children = ["the hub's tunnel", "the agent's tunnel", "a backend of postgres"];
    for victim in roles.into_iter().chain(others).chain(children) {
        let job = market.submit(&[], &["python3", "-c", TICKS]);
        wait_for("the third tick", || market.stdout(&job).contains("tick 2").then_some(()));
        kill(market.pid_of(victim), SIGKILL);
        let done = wait_for(&format!("the job to end after {victim} was killed"), || {
            let listed = market.nave(&["ps", "--json"]).output().ok()?;
            let list: serde_json::Value = serde_json::from_slice(&listed.stdout).ok()?;
            let job = list["items"].as_array()?.iter().find(|item| item["job"] == job.as_str())?.clone();
            job["finished_at"].is_string().then_some(job)
        });
        assert_eq!(done["state"], "succeeded", "after {victim} was killed: {done}");
        // An engine forgets how a command ended that ends before it is back: on a busy machine it
        // may do so, and the command runs once more.
        let attempts = done["attempts"].as_array().expect("attempts").len();
        if attempts == 2 && ["dockerd", "containerd"].contains(&victim) {
            assert_eq!(
                done["attempts"][0]["outcome"]["kind"], "host_lost",
                "after {victim} was killed: {done}"
            );
            assert!(market.stdout(&job).ends_with(&ticks()), "after {victim} was killed: {done}");
        } else {
            assert_eq!(attempts, 1, "after {victim} was killed: {done}");
            assert_eq!(market.stdout(&job), ticks(), "after {victim} was killed");
        }
        market.audit();
    }
    assert_eq!(market.json(&["balance"])["held"], 0);
}

#[test]
fn a_command_killed_from_outside_runs_again() {
    let Some(market) = Market::docker(&[]) else { return };
    let job = market.submit(&[], &["python3", "-c", TICKS, "victim-command"]);
    wait_for("the third tick", || market.stdout(&job).contains("tick 2").then_some(()));
    kill(find_process("victim-command").expect("the command"), SIGKILL);
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["attempts"][0]["outcome"]["kind"], "killed", "{done}");
    assert!(market.stdout(&job).ends_with(&ticks()), "{}", market.stdout(&job));
    market.audit();
}

#[test]
fn a_command_that_ends_while_the_engine_is_down_runs_again_since_its_output_may_be_lost() {
    let Some(market) = Market::docker(&[]) else { return };
    let program = "import time; print('begin', flush=True); time.sleep(2); print('end', flush=True)";
    let job = market.submit(&[], &["python3", "-c", program, "unseen-end"]);
    wait_for("its first line", || market.stdout(&job).contains("begin").then_some(()));
    let supervisor = market.supervisor();
    kill(supervisor, SIGSTOP);
    kill(market.pid("dockerd"), SIGKILL);
    wait_for("the command to end", || find_process("unseen-end").is_none().then_some(()));
    kill(supervisor, SIGCONT);
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["attempts"].as_array().expect("attempts").len(), 2, "{done}");
    assert_eq!(done["attempts"][0]["outcome"]["kind"], "host_lost", "{done}");
    assert_eq!(done["attempts"][0]["charged"], 0, "{done}");
    assert!(market.stdout(&job).ends_with("begin\nend\n"), "{}", market.stdout(&job));
    market.audit();
}

/// An engine has no networks yet when it takes in what runs: it keeps those of commands that
/// end then, and says that something is still in them.
#[test]
fn commands_that_end_while_the_engine_starts_leave_no_network() {
    let Some(market) = Market::docker(&[]) else { return };
    let small = ["--cpu", "0.1", "--memory", "64MiB", "--disk", "32MiB"];
    let program = "import time; time.sleep(600)";
    let submit = |_| market.submit(&small, &["python3", "-c", program, "ends-with-its-engine"]);
    let jobs: Vec<String> = (0..8).map(submit).collect();
    for job in &jobs {
        market.await_job(job, "running", |document| document["state"] == "running");
    }
    let (commands, engine) = (find_processes(&["ends-with-its-engine"]), market.pid("dockerd"));
    kill(engine, SIGKILL);
    wait_for("the next engine", || market.pid_now("dockerd").filter(|pid| *pid != engine));
    for command in commands {
        kill(command, SIGKILL);
        thread::sleep(Duration::from_millis(60));
    }
    for job in &jobs {
        succeed(&mut market.nave(&["cancel", job]));
        market.await_final(job);
    }
    let host = market.hosts().remove(0);
    let list = ["-H", host.engine(), "network", "ls", "--quiet", "--filter", "type=custom"];
    wait_for("the networks to be gone", || {
        let listed = Command::new("/usr/bin/docker").args(list).output().ok()?;
        (listed.status.success() && listed.stdout.is_empty()).then_some(())
    });
    market.audit();
}

#[test]
fn killing_the_supervisor_changes_nothing_and_the_next_one_takes_over() {
    let Some(market) = Market::docker(&[]) else { return };
    let job = market.submit(&[], &["python3", "-c", TICKS]);
    market.await_job(&job, "running", |document| document["state"] == "running");
    kill(market.supervisor(), SIGKILL);
    assert_eq!(market.await_final(&job)["state"], "succeeded");
    assert_eq!(market.stdout(&job), ticks());
    let held = market.submit(&[], &["python3", "-c", TICKS]);
    market.await_job(&held, "running", |document| document["state"] == "running");
    market.up();
    let done = market.await_final(&held);
    assert_eq!(done["state"], "succeeded", "a job that runs while the supervisor is replaced: {done}");
    // On a busy machine it may end before its engine is there again, and then runs once more.
    assert!(market.stdout(&held).ends_with(&ticks()), "{done}");
    market.audit();
}

#[test]
fn a_lost_host_costs_nothing_and_its_job_runs_again() {
    let Some(market) = Market::docker(&["--fence", "3s", "--report", "1s"]) else { return };
    let job = market.submit(
        &[],
        &["python3", "-c", "import time; time.sleep(2); print('done', flush=True); time.sleep(2)"],
    );
    market.await_job(&job, "running", |document| document["state"] == "running");
    let agent = market.pid("agent");
    kill(agent, SIGSTOP);
    let lost =
        market.await_job(&job, "queued again", |document| document["attempts"][0]["state"] == "closed");
    kill(agent, SIGCONT);
    assert_eq!(lost["attempts"][0]["outcome"]["kind"], "host_lost");
    assert_eq!(lost["charged"], 0, "a lost attempt is not charged: {lost}");
    let done = market.await_final(&job);
    assert_eq!(done["state"], "succeeded", "{done}");
    assert_eq!(done["attempts"].as_array().expect("attempts").len(), 2, "{done}");
    market.audit();
}

#[test]
fn a_market_that_is_stopped_keeps_its_books_and_its_queue() {
    let Some(market) = Market::docker(&[]) else { return };
    let before = market.json(&["balance"])["available"].as_i64().expect("money");
    let job = market.submit(&["--cpu", "512"], &["true"]);
    let running = market.submit(&[], &["python3", "-c", TICKS]);
    market.await_job(&running, "running", |document| document["state"] == "running");
    market.down();
    market.up();
    assert_eq!(market.job(&job)["state"], "queued");
    let done = market.await_final(&running);
    assert_eq!(done["state"], "succeeded", "{done}");
    succeed(&mut market.nave(&["cancel", &job]));
    market.await_final(&job);
    let cost: i64 = done["charged"].as_i64().expect("money");
    assert_eq!(market.json(&["balance"])["available"].as_i64().expect("money"), before - cost);
    market.audit();
}

#[test]
fn an_epoch_gives_the_miner_that_delivered_its_weight() {
    let Some(market) = Market::docker(&["--epoch", "2s"]) else { return };
    market.run(&[], &["python3", "-c", TICKS]);
    let hotkey = market.all_hosts()[0]["hotkey"].as_str().expect("a hotkey").to_owned();
    let earned = wait_for("an epoch with deliveries", || {
        let epochs = market.json(&["epoch", "list"]);
        let confirmed = epochs
            .as_array()?
            .iter()
            .find(|epoch| epoch["state"] == "confirmed" && epoch["weights"][&hotkey].as_u64() > Some(0))?;
        Some(confirmed.clone())
    });
    assert!(earned["delivered"][&hotkey]["used_ms"].as_i64().expect("use") > 0, "{earned}");
    assert_eq!(earned["chain"], "local");
}

#[test]
fn a_simulated_host_says_so_wherever_a_person_looks() {
    let image = format!("example.org/none@sha256:{}", "0".repeat(64));
    let Some(market) = Market::simulated(&["--default-image", &image]) else { return };
    assert_eq!(market.up_json()["runtime"], "simulated");
    let job = market.run(&[], &["python3", "-c", SUM]);
    assert_eq!(job["state"], "succeeded", "{job}");
    let id = job["job"].as_str().expect("an id");
    assert!(market.stdout(id).starts_with("simulated:"), "{}", market.stdout(id));
    assert_eq!(market.receipt(id)["attempts"][0]["runtime"], "simulated");
    for words in [&["receipt", id][..], &["hosts"], &["offers"]] {
        assert!(succeed(&mut market.nave(words)).contains("simulated"), "{words:?}");
    }
}
