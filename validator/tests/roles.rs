//! The validator and the treasury on a real Postgres, with a local chain.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use nave_domain::{
    CustomerId, HostId, JobId, LeaseId, MicroUsd, Millis,
    epoch::{EpochState, WEIGHT_TOTAL},
    host::{Device, Inventory, Proven, ProvenDevice},
    lease::Outcome,
    rate::Rate,
};
use nave_store::{
    EpochRow, Placement, Store, Submission,
    testing::{self, NewHost},
};
use nave_validator::{
    chain::{Chain, Commitment, LocalChain},
    key::MarketKey,
    params::{self, Params},
    role::{Config, chores, step},
    treasury,
};

/// One dollar an hour for a virtual CPU.
const RATE: Rate =
    Rate { gpu_hour: MicroUsd::ZERO, vcpu_hour: MicroUsd(3_600_000_000), gib_hour: MicroUsd::ZERO };

struct Market {
    store: Store,
    customer: CustomerId,
    dir: tempfile::TempDir,
}

impl Market {
    async fn open() -> Self {
        let store = testing::store().await;
        let customer = store.customer_ensure("ada").await.expect("a customer");
        store.credit(customer, "first", MicroUsd(10_000_000)).await.expect("credit");
        Self { store, customer, dir: tempfile::tempdir().expect("a directory") }
    }

    fn chain(&self) -> PathBuf {
        self.dir.path().join("chain")
    }

    /// Closes an epoch at every step.
    fn config(&self) -> Config {
        config(&self.chain(), Millis::ZERO)
    }

    async fn step(&self) -> anyhow::Result<()> {
        step(&self.config(), &self.store).await
    }

    async fn epoch(&self, epoch: i64) -> EpochRow {
        self.store.epoch_get(epoch).await.expect("the epoch")
    }

    /// A host of this miner on which a job runs.
    async fn running(&self, hotkey: &str) -> (HostId, JobId, LeaseId) {
        let host = host_of(hotkey);
        self.store.host_enrol(&NewHost { host, name: hotkey, hotkey, rate: RATE }).await.expect("enrol");
        let inventory = serde_json::from_str(INVENTORY).expect("an inventory");
        self.store.host_hear(host, 1, 1, 0, &inventory).await.expect("hear");
        let request = serde_json::from_str(r#"{"argv":["true"]}"#).expect("a request");
        let submission =
            Submission { customer: self.customer, key: hotkey, hash: [0; 32], request: &request };
        let job = self.store.job_submit(&submission).await.expect("submit").job;
        let placement = Placement {
            job,
            host,
            generation: self.store.host_generation(host).await.expect("generation"),
            size: request.resources.size(),
            disk: request.resources.disk,
            devices: Vec::new(),
            share: None,
            rate: RATE,
            run_max: Millis(60_000),
            capped_by_spend: false,
            grounds: nave_store::Grounds::default(),
            gang: None,
        };
        let lease = self.store.job_place(&placement).await.expect("place");
        self.store.lease_started(host, lease).await.expect("started");
        (host, job, lease)
    }

    /// Lets the lease run for a moment.
    async fn use_up(&self, host: HostId, lease: LeaseId) {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        self.store.leases_heard(host, &[lease]).await.expect("heard");
    }
}

fn config(chain: &Path, epoch: Millis) -> Config {
    Config {
        epoch,
        sink: "sink".into(),
        chain: Chain::Local(LocalChain::new(chain)),
        key: MarketKey::new("00".repeat(32), |_| [0; 64]),
        first_params: Params { vcpu_hour: RATE.vcpu_hour.0, ..params::local() },
        evidence: None,
    }
}

/// An id that differs from miner to miner.
fn host_of(hotkey: &str) -> HostId {
    let number = hotkey.bytes().fold(0_u128, |sum, byte| sum * 256 + u128::from(byte));
    format!("host_{number:032x}").parse().expect("an id")
}

const INVENTORY: &str = r#"{
    "milli_cpu": 8000, "memory": 34359738368, "disk": 107374182400, "devices": [], "cpu_model": "test",
    "os": "test", "kernel": "test", "runtime": {"kind": "simulated"}, "egress": ["public"], "agent": "test"
}"#;

#[tokio::test]
async fn an_epoch_goes_from_its_close_to_its_confirmation_and_the_next_is_open() {
    let market = Market::open().await;
    let (host, job, lease) = market.running("miner").await;
    market.use_up(host, lease).await;
    market
        .store
        .lease_finished(host, lease, Some(Outcome::Exited { code: 0 }), None)
        .await
        .expect("finished");
    market.step().await.expect("step");
    let epoch = market.epoch(1).await;
    assert_eq!(epoch.state, EpochState::Confirmed);
    assert_eq!(epoch.weights, Some([("miner".to_owned(), WEIGHT_TOTAL)].into()));
    let delivered = market.store.epoch_delivered(1).await.expect("delivered")["miner"];
    let charged = market.store.job_get(market.customer, job).await.expect("the job").charged;
    assert_eq!(delivered.value, charged, "weights follow what was paid");
    assert!(charged > MicroUsd::ZERO);
    assert_eq!(market.epoch(2).await.state, EpochState::Open);
}

#[tokio::test]
async fn an_epoch_without_deliveries_gives_all_its_weight_to_the_sink() {
    let market = Market::open().await;
    market.step().await.expect("step");
    assert_eq!(market.epoch(1).await.weights, Some([("sink".to_owned(), WEIGHT_TOTAL)].into()));
}

#[tokio::test]
async fn an_epoch_stays_open_until_its_time_is_over() {
    let market = Market::open().await;
    let config = config(&market.chain(), Millis(60_000));
    for _ in 0..2 {
        step(&config, &market.store).await.expect("step");
    }
    let epochs = market.store.epoch_list(10).await.expect("list");
    assert_eq!(epochs.iter().map(|epoch| epoch.state).collect::<Vec<_>>(), [EpochState::Open]);
}

#[tokio::test]
async fn a_validator_that_ended_anywhere_resumes_from_the_rows() {
    let market = Market::open().await;
    let chain = Chain::Local(LocalChain::new(&market.chain()));
    let weights = BTreeMap::from([("sink".to_owned(), WEIGHT_TOTAL)]);
    for (epoch, reached) in
        (1..).zip([EpochState::Closed, EpochState::Settled, EpochState::Settled, EpochState::Submitted])
    {
        market.store.epoch_open("local").await.expect("open");
        market.store.epoch_close(epoch, "local").await.expect("close");
        if reached >= EpochState::Settled {
            market.store.epoch_advance(epoch, EpochState::Closed, Some(&weights)).await.expect("settle");
        }
        if epoch >= 3 {
            let commitment = Commitment { weights: weights.clone(), head: None };
            chain.submit(epoch, &commitment).expect("submit");
        }
        if reached >= EpochState::Submitted {
            market.store.epoch_advance(epoch, EpochState::Settled, None).await.expect("submitted");
        }
    }
    step(&config(&market.chain(), Millis(60_000)), &market.store).await.expect("step");
    for epoch in 1..=4 {
        assert_eq!(market.epoch(epoch).await.state, EpochState::Confirmed, "epoch {epoch}");
    }
}

#[tokio::test]
async fn a_chain_that_shows_other_weights_is_noticed_and_holds_up_no_other_epoch() {
    let market = Market::open().await;
    let weights = [("thief".to_owned(), WEIGHT_TOTAL)].into();
    let chain = Chain::Local(LocalChain::new(&market.chain()));
    chain.submit(1, &Commitment { weights, head: None }).expect("submit");
    let ours = [("sink".to_owned(), WEIGHT_TOTAL)].into();
    market.store.epoch_open("local").await.expect("open");
    market.store.epoch_close(1, "local").await.expect("close");
    market.store.epoch_advance(1, EpochState::Closed, Some(&ours)).await.expect("settle");
    market.store.epoch_advance(1, EpochState::Settled, None).await.expect("submitted");
    let alarm = market.step().await.expect_err("other weights");
    assert!(format!("{alarm:#}").contains("epoch 1: the chain shows something else"), "{alarm:#}");
    assert_eq!(market.epoch(1).await.state, EpochState::Submitted);
    assert_eq!(market.epoch(2).await.state, EpochState::Confirmed);
}

#[tokio::test]
async fn a_chain_that_cannot_be_written_is_tried_again() {
    let market = Market::open().await;
    fs::write(market.chain(), "in the way").expect("a file where the chain should be");
    market.step().await.expect_err("no directory");
    assert_eq!(market.epoch(1).await.state, EpochState::Settled);
    fs::remove_file(market.chain()).expect("out of the way");
    market.step().await.expect("step");
    assert_eq!(market.epoch(1).await.state, EpochState::Confirmed);
}

#[tokio::test]
async fn a_chore_that_fails_holds_up_no_other_one() {
    let market = Market::open().await;
    market.step().await.expect("an epoch is confirmed");
    market.store.evidence_days_set(0).await.expect("nothing is kept");
    let host = host_of("miner");
    let rate = Rate { gpu_hour: MicroUsd(i64::MAX), vcpu_hour: MicroUsd(i64::MAX), ..RATE };
    market.store.host_enrol(&NewHost { host, name: "miner", hotkey: "miner", rate }).await.expect("enrol");
    let device: Device = serde_json::from_str(
        r#"{"uuid": "SIM-1", "model": "test", "vram": 85899345920, "driver": "1", "simulated": true}"#,
    )
    .expect("a device");
    let mut claims: Inventory = serde_json::from_str(INVENTORY).expect("an inventory");
    let shown = ProvenDevice::of(&device, Some("h100".into()));
    let mut proven = Proven::of(&claims);
    proven.devices = Some([(device.uuid.clone(), shown)].into());
    claims.devices = vec![device];
    market.store.host_hear(host, 1, 1, 0, &claims).await.expect("hear");
    let seen = market.store.host_generation(host).await.expect("generation");
    market.store.host_prove(host, seen, &proven).await.expect("proven");
    assert!(market.store.idle_look(Millis(1)).await.is_err(), "there is no number for its price");
    assert!(market.store.bundle_open(1).await.is_ok());
    chores(&market.store).await;
    assert!(market.store.bundle_open(1).await.is_err(), "old bundles are forgotten all the same");
}

#[tokio::test]
async fn the_treasury_charges_open_leases_as_they_are_metered() {
    let market = Market::open().await;
    let (host, job, lease) = market.running("miner").await;
    market.use_up(host, lease).await;
    let charged = async || market.store.job_get(market.customer, job).await.expect("the job").charged;
    assert_eq!(charged().await, MicroUsd::ZERO);
    treasury::charge_all(&market.store).await.expect("charge");
    let first = charged().await;
    assert!(first > MicroUsd::ZERO);
    treasury::charge_all(&market.store).await.expect("charge again");
    assert_eq!(charged().await, first, "nothing new was metered");
    assert_eq!(market.store.ledger_audit().await.expect("audit"), Vec::<String>::new());
}
