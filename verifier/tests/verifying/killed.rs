//! Verifiers that are killed, and several at once.

use std::{
    env, fs,
    future::pending,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nave_domain::{Millis, host::HostState, verdict::Kind};
use nave_store::Store;
use nave_verifier::run;
use tokio::time::sleep;

use crate::{
    devices::{NO_SOONER, with_devices},
    market::{EFFORT, Host, Market, look, open},
};

#[tokio::test]
async fn a_verifier_that_ends_after_a_nonce_is_continued_by_the_next() {
    let market = open().await;
    let mut host = market.host("alpha", 1_000).await;
    look(&mut market.verifier()).await;
    host.work_within(EFFORT).await;
    look(&mut market.verifier()).await;
    let nonce = host.fetch().await.expect("a challenge").reveals;
    look(&mut market.verifier()).await;
    assert_eq!(host.fetch().await.expect("a challenge").reveals, nonce, "nothing is drawn twice");
    host.work().await;
    // This one begins to judge and never writes down what came of it.
    let mut ended = market.verifier();
    ended.look().await.expect("look");
    drop(ended);
    look(&mut market.verifier()).await;
    look(&mut market.verifier()).await;
    assert_eq!(host.codes().await, ["passed", "open"]);
    assert!(host.challenges().await[1].body["task"].get("memory").is_some(), "its memory is next");
}

#[tokio::test]
async fn two_verifiers_at_once_draw_one_challenge_and_write_one_verdict() {
    let market = open().await;
    let (mut one, mut other) = (market.verifier(), market.verifier());
    let mut host = market.host("alpha", 8_000).await;
    for took in [Millis(8 * EFFORT.0), EFFORT] {
        tokio::join!(look(&mut one), look(&mut other));
        assert_eq!(host.challenges().await.len(), 1);
        host.work_within(took).await;
    }
    let before = market.store.clock_up().await.expect("clock").0;
    tokio::join!(look(&mut one), look(&mut other));
    assert_eq!((host.state().await, host.last_code().await), (HostState::Refused, "cpu_overclaimed"));
    assert_eq!(host.challenges().await.len(), 1);
    let retry = market.store.host_retry_up(host.id).await.expect("a row").expect("a pause").0;
    assert!(retry - before < 15_000, "it is refused once, and so its pause is the first: {}", retry - before);
}

/// What the child of [`killed_at`] runs; nothing, where no database is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_in_a_process_of_its_own() {
    let Ok(url) = env::var("NAVE_TEST_VERIFIES") else { return };
    let store = Store::connect(&url).await.expect("connect");
    run(with_devices(NO_SOONER), store, pending()).await.expect("verify");
}

/// A verifier in a process of its own; ends with the test.
struct Process(Child);

impl Process {
    fn start(market: &Market, armed: &Path) -> Self {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--exact", "killed::a_role_in_a_process_of_its_own"]);
        command.env("NAVE_TEST_VERIFIES", &market.url).env("NAVE_CRASH_POINTS", armed);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start"))
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Does what it is asked whenever it is asked, until it takes jobs.
async fn prove_all(host: &mut Host, mut meanwhile: impl FnMut()) {
    let mut done = Vec::new();
    for _ in 0..1_200 {
        meanwhile();
        host.report().await;
        if let Some(challenge) = host.fetch().await
            && !done.contains(&(challenge.challenge, challenge.step()))
        {
            done.push((challenge.challenge, challenge.step()));
            host.answer(&challenge).await;
        }
        match host.state().await {
            HostState::Ready => return,
            HostState::Refused => panic!("refused: {:?}", host.rulings().await),
            HostState::Enrolled
            | HostState::Verifying
            | HostState::Suspect
            | HostState::Draining
            | HostState::Gone
            | HostState::Banned => sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("not ready: {:?} {:?}", host.state().await, host.challenges().await);
}

async fn killed_at(points: &[&str], verifiers: usize) {
    let market = open().await;
    let armed = tempfile::tempdir().expect("a directory");
    for point in points {
        fs::write(armed.path().join(point), "").expect("arm");
    }
    let mut host = market.host_with_devices("alpha", &[("SIM-1", Vec::new())]).await;
    let mut processes: Vec<_> = (0..verifiers).map(|_| Process::start(&market, armed.path())).collect();
    let mut killed = 0;
    let start_again = || {
        for process in &mut processes {
            if process.has_ended() {
                *process = Process::start(&market, armed.path());
                killed += 1;
            }
        }
    };
    prove_all(&mut host, start_again).await;
    assert_eq!(killed, points.len(), "each point kills one process");
    let kinds: Vec<Kind> = host.challenges().await.iter().map(|drawn| drawn.kind).collect();
    assert_eq!(kinds, [Kind::Cpu, Kind::Memory, Kind::Devices], "every challenge was drawn once");
    assert_eq!(host.codes().await, ["passed"; 3], "and judged once");
}

#[tokio::test]
async fn a_host_that_waits_for_its_nonce_has_it_before_the_first_silent_one_has_its_verdict() {
    let market = open().await;
    let silent = market.host("alpha", 1_000).await;
    look(&mut market.verifier()).await;
    let mut waiting = market.host("beta", 1_000).await;
    look(&mut market.verifier()).await;
    waiting.work_within(EFFORT).await;
    market.store.clock_advance(Millis(65_000)).await.expect("advance");
    let armed = tempfile::tempdir().expect("a directory");
    fs::write(armed.path().join("store.challenge_decide.before_commit"), "").expect("arm");
    let mut process = Process::start(&market, armed.path());
    for _ in 0..1_200 {
        match process.has_ended() {
            true => break,
            false => sleep(Duration::from_millis(50)).await,
        }
    }
    assert!(process.has_ended(), "it is killed while it writes the verdict");
    assert_eq!(silent.last_code().await, "open");
    assert_eq!(waiting.fetch().await.expect("a challenge").reveals.len(), 1);
}

#[tokio::test]
async fn a_verifier_may_be_killed_before_it_writes_anything() {
    killed_at(
        &["verifier.draw.before_store", "verifier.reveal.before_store", "verifier.judge.before_store"],
        1,
    )
    .await;
}

#[tokio::test]
async fn a_verifier_may_be_killed_while_it_writes() {
    killed_at(&["store.challenge_draw.before_commit", "store.challenge_decide.before_commit"], 1).await;
}

#[tokio::test]
async fn two_verifiers_that_are_killed_are_like_one() {
    killed_at(&["verifier.reveal.before_store", "verifier.judge.before_store"], 2).await;
}
