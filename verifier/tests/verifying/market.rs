//! A small market to test in: hosts that do what their challenges ask, honestly or not, and
//! verifiers that look when they are told to.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, ChallengeId, HostId, LeaseId, MicroUsd, MilliCpu, MilliGpu, Millis,
    fraction::{Division, Fraction, Slice},
    host::{Device, HostState, Inventory, Runtime},
    rate::Rate,
};
use nave_proof::{
    Answer, Challenge, Digest, INLINE_MAX, Kind, Message, Opening, ProofReport, Prover, Resources,
    software::{Dishonesty, SoftwareDevice, SoftwareModel, Turns, VirtualClock},
};
use nave_store::{
    HostRow, Placement, SentChallenge, Store, Submission,
    testing::{self, Drawn, NewHost},
};
use nave_verifier::{
    Config, Verifier,
    decide::{Ruling, Written},
};
use serde_json::{Value, json};
use sha2::Digest as _;
use uuid::Uuid;

/// How much work proofs of computing power are, here: next to none.
pub const EFFORT: Millis = Millis(20);

pub fn config() -> Config {
    let enforced = [Kind::Cpu, Kind::Memory].into();
    Config { effort: EFFORT, enforced, ..Config::default() }
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
        self.host_of(&format!("miner of {name}"), name, milli_cpu).await
    }

    /// The same, of a certain miner.
    pub async fn host_of(&self, hotkey: &str, name: &str, milli_cpu: i64) -> Host {
        let id = HostId(Uuid::now_v7());
        let zero = Rate { gpu_hour: MicroUsd::ZERO, vcpu_hour: MicroUsd::ZERO, gib_hour: MicroUsd::ZERO };
        let new = NewHost { host: id, name, hotkey, rate: zero };
        self.store.host_enrol(&new).await.expect("enrol");
        let inventory = inventory(milli_cpu);
        let store = self.store.clone();
        let (sequence, provers, models) = (0, BTreeMap::new(), Vec::new());
        let mut host = Host { id, inventory, models, store, sequence, provers };
        host.report().await;
        host
    }

    /// A host with simulated GPUs of these names that has joined and was heard once.
    pub async fn host_with_devices(&self, name: &str, devices: &[(&str, Vec<Dishonesty>)]) -> Host {
        let mut host = self.host(name, 1_000).await;
        host.inventory.devices = devices.iter().map(|(uuid, _)| device(uuid)).collect();
        host.models = devices.iter().map(|(uuid, how)| ((*uuid).to_owned(), how.clone())).collect();
        self.store.inventory_settle(host.id).await.expect("time passes");
        host.report().await;
        host
    }
}

impl Host {
    /// Cuts its GPU of this name into slices, each with its ways to deceive.
    pub async fn cut(&mut self, uuid: &str, slices: &[(&str, Vec<Dishonesty>)]) {
        let slice = |(uuid, _): &(&str, Vec<Dishonesty>)| Slice {
            uuid: (*uuid).to_owned(),
            profile: "1g.16mb".into(),
            milli: MilliGpu(250),
            vram: Bytes(16 * Bytes::MIB),
        };
        let division = Division::Slices(slices.iter().map(slice).collect());
        self.inventory.devices = vec![Device { division, ..device(uuid) }];
        self.models = slices.iter().map(|(uuid, how)| ((*uuid).to_owned(), how.clone())).collect();
        self.store.inventory_settle(self.id).await.expect("time passes");
        self.report().await;
    }

    /// Makes its GPU of this name whole again.
    pub async fn mend(&mut self, uuid: &str) {
        self.inventory.devices = vec![device(uuid)];
        self.models = vec![(uuid.to_owned(), Vec::new())];
        self.store.inventory_settle(self.id).await.expect("time passes");
        self.report().await;
    }
}

/// One look, and all that comes of it.
pub async fn look(verifier: &mut Verifier) {
    verifier.look().await.expect("look");
    verifier.settle().await;
}

/// A GPU that is computed on the processor.
pub fn device(uuid: &str) -> Device {
    let (model, driver) = ("Nave Simulated".to_owned(), "1".to_owned());
    let (uuid, vram) = (uuid.to_owned(), Bytes(64 * Bytes::MIB));
    Device {
        uuid,
        model,
        vram,
        driver,
        simulated: true,
        division: nave_domain::fraction::Division::default(),
    }
}

fn model(dishonesty: &[Dishonesty]) -> SoftwareModel {
    SoftwareModel {
        model: "Nave Simulated".into(),
        vram: Bytes(64 * Bytes::MIB),
        ops_per_s: 1 << 30,
        bytes_per_s: 1 << 30,
        reads_per_s: 1 << 30,
        hashes_per_s: 1 << 30,
        return_bytes_per_s: 1 << 30,
        dishonesty: dishonesty.to_vec(),
    }
}

/// A host, as far as its proofs go.
pub struct Host {
    pub id: HostId,
    pub inventory: Inventory,
    /// Its GPUs by their names, and how they deceive.
    models: Vec<(String, Vec<Dishonesty>)>,
    pub store: Store,
    sequence: u64,
    provers: BTreeMap<ChallengeId, Prover>,
}

impl Host {
    pub async fn report(&mut self) {
        self.sequence += 1;
        let heard = self.store.host_hear(self.id, 1, self.sequence, 0, &self.inventory).await;
        heard.expect("a report");
    }

    /// Has its GPUs deceive from now on.
    pub fn deceive(&mut self, how: &[Dishonesty]) {
        for (_, known) in &mut self.models {
            *known = how.to_vec();
        }
    }

    /// Its challenges, which count as sent from now on.
    pub async fn fetch_all(&self) -> Vec<Challenge> {
        let sent = self.store.challenge_send(self.id).await.expect("a spec");
        let read = |sent: SentChallenge| {
            let challenge: Challenge = serde_json::from_value(sent.body).expect("a challenge");
            assert_eq!(challenge.challenge, sent.challenge);
            let reveals = sent.reveals.iter().map(|nonce| nonce.parse().expect("a nonce")).collect();
            Challenge { reveals, ..challenge }
        };
        sent.into_iter().map(read).collect()
    }

    /// The first of them.
    pub async fn fetch(&self) -> Option<Challenge> {
        self.fetch_all().await.into_iter().next()
    }

    /// What it proves with: two threads, and its GPUs on a clock that is only counted.
    fn resources(&self) -> Resources {
        let (models, clock, turns) = (self.models.clone(), VirtualClock::default(), Turns::default());
        Resources::new(2).with_devices(move |task| {
            let (_, how) = models.iter().find(|(uuid, _)| *uuid == task.uuid).expect("one of its own");
            Ok(Box::new(SoftwareDevice::new(&model(how), clock.pace(), &turns))
                as Box<dyn nave_proof::device::Device>)
        })
    }

    /// Does what its challenge asks.
    pub fn prove(&mut self, challenge: &Challenge) -> ProofReport {
        if challenge.reveals.is_empty() {
            let prover = Prover::new(challenge, self.resources()).expect("a challenge of this version");
            self.provers.insert(challenge.challenge, prover);
        }
        let prover = self.provers.get_mut(&challenge.challenge).expect("a challenge that has begun");
        let message = match prover.answer(challenge).expect("an answer") {
            Answer::Commitment(root) => Message::Commitment(root),
            Answer::Opening(bytes) => Message::Opening(Opening::Inline(bytes)),
        };
        let step = u32::try_from(challenge.step()).expect("small");
        ProofReport { challenge: challenge.challenge, step, message }
    }

    /// Does all that it is asked until nothing is open any more, or it takes jobs.
    pub async fn prove_all(&mut self, verifier: &mut Verifier) {
        for _ in 0..60 {
            look(verifier).await;
            self.report().await;
            if self.state().await == HostState::Ready && self.fetch().await.is_none() {
                return;
            }
            for challenge in self.fetch_all().await {
                self.answer(&challenge).await;
            }
            if self.state().await == HostState::Refused {
                return;
            }
        }
        panic!("{:?} after {:?}", self.state().await, self.codes().await);
    }

    /// Answers the present step of a challenge, a large opening as a blob, within the time it has.
    pub async fn answer(&mut self, challenge: &Challenge) {
        let report = self.prove(challenge);
        let is_large =
            matches!(&report.message, Message::Opening(Opening::Inline(bytes)) if bytes.len() > INLINE_MAX);
        let report = if is_large { self.stored(report).await } else { report };
        if self.send(&report).await {
            let took = Millis(20);
            self.store.challenge_took(report.challenge, report.step, took, took).await.expect("move time");
        }
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

    /// A lease of one of its GPUs whose command runs.
    pub async fn lease(&self, device: &str) -> LeaseId {
        self.lease_part(device, None).await
    }

    /// The same, of a share of it.
    pub async fn share(&self, device: &str) -> LeaseId {
        let fraction = Fraction { milli: MilliGpu(250), vram: Bytes(Bytes::MIB) };
        self.lease_part(device, Some(fraction)).await
    }

    async fn lease_part(&self, device: &str, share: Option<Fraction>) -> LeaseId {
        let store = &self.store;
        let customer = store.customer_ensure("customer").await.expect("a customer");
        store.credit(customer, "first", MicroUsd(10_000_000)).await.expect("credit");
        let request = serde_json::from_str(r#"{"argv":["true"]}"#).expect("a request");
        let submission = Submission { customer, key: device, hash: [7; 32], request: &request };
        let job = store.job_submit(&submission).await.expect("submit").job;
        let generation = store.snapshot().await.expect("snapshot").hosts[&self.id].generation;
        let placement = Placement {
            job,
            host: self.id,
            generation,
            size: request.resources.size(),
            disk: request.resources.disk,
            devices: vec![device.to_owned()],
            share,
            rate: Rate { gpu_hour: MicroUsd::ZERO, vcpu_hour: MicroUsd::ZERO, gib_hour: MicroUsd::ZERO },
            run_max: request.limits.run_ms,
            capped_by_spend: false,
            grounds: nave_store::Grounds::default(),
            gang: None,
        };
        let lease = store.job_place(&placement).await.expect("place");
        store.lease_started(self.id, lease).await.expect("started");
        lease
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
        let read = |drawn: Drawn| {
            let written = serde_json::from_value::<Written>(drawn.verdict?).expect("a verdict");
            Some(written.ruling)
        };
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
