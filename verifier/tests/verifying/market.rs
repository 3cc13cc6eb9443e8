//! A small market to test in: hosts that do what their challenges ask, honestly or not, and
//! verifiers that look when they are told to.

use nave_domain::{
    Bytes, HostId, MicroUsd, MilliCpu, Millis,
    host::{HostState, Inventory, Runtime},
    rate::Rate,
};
use nave_proof::{Answer, Challenge, Digest, Message, Opening, ProofReport, Prover};
use nave_store::{
    HostRow, Store,
    testing::{self, Drawn, NewHost},
};
use nave_verifier::{Config, Verifier, decide::Ruling};
use serde_json::{Value, json};
use sha2::Digest as _;
use uuid::Uuid;

/// How much work proofs of computing power are, here: next to none.
pub const EFFORT: Millis = Millis(20);

pub fn config() -> Config {
    Config { effort: EFFORT, ..Config::default() }
}

/// A market in a database of its own.
pub struct Market {
    pub store: Store,
    pub url: String,
}

pub async fn open() -> Market {
    let (url, _) = testing::database().await;
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    Market { store, url }
}

pub fn inventory(milli_cpu: i64) -> Inventory {
    Inventory {
        milli_cpu: MilliCpu(milli_cpu),
        memory: Bytes(8 * Bytes::MIB),
        disk: Bytes(Bytes::GIB),
        devices: Vec::new(),
        cpu_model: "a processor".into(),
        os: "test".into(),
        kernel: "test".into(),
        runtime: Runtime::Simulated,
        egress: Vec::new(),
        agent: "test".into(),
    }
}

impl Market {
    pub fn verifier(&self) -> Verifier {
        Verifier::new(config(), self.store.clone())
    }

    /// A host that has joined and was heard once.
    pub async fn host(&self, name: &str, milli_cpu: i64) -> Host {
        let id = HostId(Uuid::now_v7());
        let zero = Rate { gpu_hour: MicroUsd::ZERO, vcpu_hour: MicroUsd::ZERO, gib_hour: MicroUsd::ZERO };
        let new = NewHost { host: id, name, hotkey: &format!("miner of {name}"), rate: zero };
        self.store.host_enrol(&new).await.expect("enrol");
        let inventory = inventory(milli_cpu);
        let mut host = Host { id, store: self.store.clone(), inventory, sequence: 0, prover: None };
        host.report().await;
        host
    }
}

/// One look, and all that comes of it.
pub async fn look(verifier: &mut Verifier) {
    verifier.look().await.expect("look");
    verifier.settle().await;
}

/// A host, as far as its proofs go.
pub struct Host {
    pub id: HostId,
    pub inventory: Inventory,
    store: Store,
    sequence: u64,
    prover: Option<Prover>,
}

impl Host {
    pub async fn report(&mut self) {
        self.sequence += 1;
        let heard = self.store.host_hear(self.id, 1, self.sequence, 0, &self.inventory).await;
        heard.expect("a report");
    }

    /// Its challenge, which counts as sent from now on.
    pub async fn fetch(&self) -> Option<Challenge> {
        let sent = self.store.challenge_send(self.id).await.expect("a spec").into_iter().next()?;
        let challenge: Challenge = serde_json::from_value(sent.body).expect("a challenge");
        assert_eq!(challenge.challenge, sent.challenge);
        let reveals = sent.reveals.iter().map(|nonce| nonce.parse().expect("a nonce")).collect();
        Some(Challenge { reveals, ..challenge })
    }

    /// Does what its challenge asks.
    pub fn prove(&mut self, challenge: &Challenge) -> ProofReport {
        if challenge.reveals.is_empty() {
            self.prover = Some(Prover::new(challenge, 2).expect("a challenge of this version"));
        }
        let prover = self.prover.as_mut().expect("a challenge that has begun");
        let message = match prover.answer(challenge).expect("an answer") {
            Answer::Commitment(root) => Message::Commitment(root),
            Answer::Opening(bytes) => Message::Opening(Opening::Inline(bytes)),
        };
        let step = u32::try_from(challenge.step()).expect("small");
        ProofReport { challenge: challenge.challenge, step, message }
    }

    /// Sends an answer; whether it was taken.
    pub async fn send(&self, report: &ProofReport) -> bool {
        self.send_json(report, &json!(report.message)).await
    }

    pub async fn send_json(&self, report: &ProofReport, answer: &Value) -> bool {
        let taken = self.store.challenge_answer(self.id, report.challenge, report.step, answer).await;
        taken.expect("a report")
    }

    /// Fetches, proves and sends.
    pub async fn work(&mut self) -> ProofReport {
        let challenge = self.fetch().await.expect("a challenge");
        let report = self.prove(&challenge);
        assert!(self.send(&report).await, "the answer to {challenge:?} is news");
        report
    }

    /// As [`Host::work`], in exactly this time.
    pub async fn work_within(&mut self, took: Millis) -> ProofReport {
        let report = self.work().await;
        self.store.challenge_took(report.challenge, report.step, took, took).await.expect("move time");
        report
    }

    /// Stores an opening as a blob instead of sending it.
    pub async fn stored(&self, report: ProofReport) -> ProofReport {
        let Message::Opening(Opening::Inline(bytes)) = &report.message else { panic!("an opening") };
        let sha256: [u8; 32] = sha2::Sha256::digest(bytes).into();
        self.store.blob_put(sha256, bytes).await.expect("store");
        let blob = Opening::Blob { sha256: Digest(sha256), size: bytes.len() as u64 };
        ProofReport { message: Message::Opening(blob), ..report }
    }

    /// Proves its cores; what comes of it is not yet judged.
    pub async fn prove_cpu(&mut self, verifier: &mut Verifier) {
        look(verifier).await;
        self.work_within(EFFORT).await;
        look(verifier).await;
        self.work().await;
    }

    /// Passes the proof of computing power for what it claims.
    pub async fn pass_cpu(&mut self, verifier: &mut Verifier) {
        self.prove_cpu(verifier).await;
        look(verifier).await;
        assert_eq!(self.last_code().await, "passed", "{:?}", self.rulings().await);
    }

    /// Passes the proof of memory that follows.
    pub async fn pass_memory(&mut self, verifier: &mut Verifier) {
        for _ in 0..3 {
            look(verifier).await;
            self.work_within(Millis(100)).await;
        }
        look(verifier).await;
        look(verifier).await;
        assert_eq!(self.last_code().await, "passed", "{:?}", self.rulings().await);
    }

    pub async fn row(&self) -> HostRow {
        let hosts = self.store.host_list().await.expect("hosts");
        hosts.into_iter().find(|row| row.host == self.id).expect("this host")
    }

    pub async fn state(&self) -> HostState {
        self.row().await.state
    }

    /// Why it takes no jobs.
    pub async fn reason(&self) -> (String, String) {
        self.row().await.reason.map(|reason| (reason.code, reason.message)).expect("a reason")
    }

    pub async fn challenges(&self) -> Vec<Drawn> {
        self.store.challenges_of_host(self.id).await.expect("challenges")
    }

    pub async fn rulings(&self) -> Vec<Option<Ruling>> {
        let read =
            |drawn: Drawn| drawn.verdict.map(|ruling| serde_json::from_value(ruling).expect("a ruling"));
        self.challenges().await.into_iter().map(read).collect()
    }

    /// The code of the newest verdict, `open` where there is none yet.
    pub async fn last_code(&self) -> &'static str {
        self.rulings().await.iter().flatten().last().map_or("open", Ruling::code)
    }

    /// The codes of all its challenges, `open` for one without a verdict.
    pub async fn codes(&self) -> Vec<&'static str> {
        self.rulings().await.iter().map(|ruling| ruling.as_ref().map_or("open", Ruling::code)).collect()
    }
}
