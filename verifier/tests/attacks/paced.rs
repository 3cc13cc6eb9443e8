//! Hosts whose GPUs take the time that their models say, on a clock that is only counted and that
//! the verifier's times follow.

use std::{collections::BTreeMap, time::Duration};

use nave_domain::{Bytes, ChallengeId, LeaseId, Millis, host::HostState};
use nave_proof::{
    Answer, Challenge, Digest, Findings, INLINE_MAX, Message, Nonce, Opening, ProofReport, Prover, Resources,
    Task,
    device::Device,
    findings::{Component, Preloaded, Trial},
    software::{Dishonesty, SoftwareDevice, SoftwareModel, Turns, VirtualClock},
};
use nave_store::Store;
use nave_verifier::Verifier;

use crate::market::{Host, Market, look};

/// A device that does what the class of simulated devices does, and deceives in these ways.
pub fn model(dishonesty: Vec<Dishonesty>) -> SoftwareModel {
    SoftwareModel {
        model: "Nave Simulated".into(),
        vram: Bytes(64 * Bytes::MIB),
        ops_per_s: 1 << 26,
        bytes_per_s: 1 << 19,
        reads_per_s: 1 << 17,
        hashes_per_s: 1 << 19,
        return_bytes_per_s: 1 << 18,
        dishonesty,
    }
}

/// A host, as far as its proofs go.
pub struct Paced {
    pub host: Host,
    /// Its GPUs as they really are, by their names.
    pub models: BTreeMap<String, SoftwareModel>,
    /// What its agent says that it has found.
    pub findings: Findings,
    store: Store,
    clock: VirtualClock,
    turns: Turns,
    provers: BTreeMap<ChallengeId, Prover>,
}

impl Paced {
    /// A host with these GPUs that has joined and was heard; those that share one share it with all that
    /// have the same `turns`.
    pub async fn join(
        market: &Market,
        name: &str,
        devices: &[(&str, Vec<Dishonesty>)],
        turns: &Turns,
    ) -> Self {
        let named: Vec<_> = devices.iter().map(|(uuid, _)| (*uuid, Vec::new())).collect();
        let models = devices.iter().map(|(uuid, how)| ((*uuid).to_owned(), model(how.clone())));
        Self {
            host: market.host_with_devices(name, &named).await,
            models: models.collect(),
            findings: sound(),
            store: market.store.clone(),
            clock: VirtualClock::default(),
            turns: turns.clone(),
            provers: BTreeMap::new(),
        }
    }

    /// Has its time begin when that of another host has come this far.
    pub fn begin_after(&self, other: &Self) {
        self.clock.pass(other.clock.now());
    }

    /// As [`Paced::join`], with one GPU that nobody else has.
    pub async fn alone(market: &Market, name: &str, device: &str, how: Vec<Dishonesty>) -> Self {
        Self::join(market, name, &[(device, how)], &Turns::default()).await
    }

    /// Whether it takes jobs or is refused, and why.
    pub async fn fate(&self) -> String {
        match self.host.row().await {
            row if row.state == HostState::Refused => row.reason.map(|reason| reason.code).expect("a reason"),
            row => row.state.as_str().to_owned(),
        }
    }

    /// Has its GPUs be these from now on, under the names that they have.
    pub fn exchange(&mut self, how: &[Dishonesty]) {
        self.models.values_mut().for_each(|present| *present = model(how.to_vec()));
    }

    /// Says something else of itself, and is heard.
    pub async fn says(&mut self, change: impl FnOnce(&mut nave_domain::host::Inventory)) {
        change(&mut self.host.inventory);
        self.store.inventory_settle(self.host.id).await.expect("time passes");
        self.host.report().await;
    }

    /// Begins a job on one of its GPUs.
    pub async fn lease(&self, device: &str) -> LeaseId {
        self.host.lease(device).await
    }

    fn resources(&self) -> Resources {
        let (models, clock, turns) = (self.models.clone(), self.clock.clone(), self.turns.clone());
        Resources::new(2).with_devices(move |task| {
            let device = SoftwareDevice::new(&models[&task.uuid], clock.pace(), &turns);
            Ok(Box::new(device) as Box<dyn Device>)
        })
    }

    /// Answers the present step of a challenge.
    async fn answer(&mut self, challenge: &Challenge) {
        match &challenge.task {
            Task::Devices(_) => self.show_devices(challenge).await,
            Task::Software(_) => {
                let findings = Findings { nonce: challenge.nonce, ..self.findings.clone() };
                let findings = serde_json::to_vec(&findings).expect("JSON");
                let message = Message::Opening(Opening::Inline(findings));
                self.host.send(&ProofReport { challenge: challenge.challenge, step: 0, message }).await;
            }
            Task::Cpu(_) | Task::Memory(_) | Task::Storage(_) | Task::Transfer(_) => {
                self.host.answer(challenge).await;
            }
        }
    }

    async fn show_devices(&mut self, challenge: &Challenge) {
        let id = challenge.challenge;
        if challenge.reveals.is_empty() && !self.provers.contains_key(&id) {
            let prover = Prover::new(challenge, self.resources()).expect("a challenge of this version");
            self.provers.insert(id, prover);
        }
        let began = self.clock.now();
        let message = match self.provers.get_mut(&id).expect("it has begun").answer(challenge) {
            Ok(Answer::Commitment(root)) => Message::Commitment(root),
            Ok(Answer::Opening(bytes)) => Message::Opening(Opening::Inline(bytes)),
            Err(failure) => Message::Failed(failure),
        };
        let took = millis(self.clock.now() - began);
        let is_large =
            matches!(&message, Message::Opening(Opening::Inline(bytes)) if bytes.len() > INLINE_MAX);
        let step = u32::try_from(challenge.step()).expect("small");
        let report = ProofReport { challenge: id, step, message };
        let report = if is_large { self.host.stored(report).await } else { report };
        if self.host.send(&report).await {
            self.store.challenge_took(id, step, took, took).await.expect("move time");
        }
    }
}

pub fn millis(length: Duration) -> Millis {
    Millis(i64::try_from(length.as_millis()).expect("short").max(1))
}

/// Has hosts do what they are asked, all at the same time, until each takes jobs or is refused.
pub async fn prove(verifier: &mut Verifier, hosts: &mut [&mut Paced]) {
    for _ in 0..60 {
        look(verifier).await;
        if !step(hosts).await {
            return;
        }
    }
    panic!("the tests do not end");
}

/// One step of each test that is open; whether any host has more to do.
pub async fn step(hosts: &mut [&mut Paced]) -> bool {
    let now = hosts.iter().map(|host| host.clock.now()).max().unwrap_or_default();
    let mut goes_on = false;
    for host in hosts {
        host.clock.pass(now - host.clock.now());
        host.host.report().await;
        let open = host.host.fetch_all().await;
        let rests = matches!(host.host.state().await, HostState::Ready | HostState::Refused);
        goes_on |= !open.is_empty() || !rests;
        for challenge in open {
            host.answer(&challenge).await;
        }
    }
    goes_on
}

/// What the agent of a host finds that is as it should be.
pub fn sound() -> Findings {
    let toolkit = vec![Component { name: "nvidia-ctk".into(), version: "1.19.1".into() }];
    Findings {
        nonce: Nonce([0; 32]),
        kernel: "6.8.0-51-generic".into(),
        architecture: "x86_64".into(),
        boot: Digest([2; 32]),
        driver: None,
        engine: None,
        toolkit,
        preloaded: Preloaded::default(),
        mounts: Vec::new(),
        mapped: Vec::new(),
        holders: Vec::new(),
        container: Trial::NotApplicable,
        gpus: Trial::NotApplicable,
    }
}
