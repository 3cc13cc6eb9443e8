//! What an epoch of 256 miners, 10 000 hosts and 1 000 000 leases costs.

use std::{hint::black_box, io::Cursor};

use criterion::{Criterion, criterion_group, criterion_main};
use nave_settlement::{
    Settlement, Settling, audit,
    bundle::{NO_HEAD, Writer},
    evidence::{Idle, Lease, Miner, Record},
    testing::{Draw, Epoch, sign},
};

const MINERS: u64 = 256;
const HOSTS: u64 = 10_000;
const LEASES: u64 = 1_000_000;

/// Ids as long, and as hard to pack, as those of a market.
fn uuid(draw: &mut Draw) -> String {
    let mut part = |end| draw.below(end);
    format!(
        "{:08x}-{:04x}-7{:03x}-8{:03x}-{:012x}",
        part(1 << 32),
        part(1 << 16),
        part(1 << 12),
        part(1 << 12),
        part(1 << 48)
    )
}

struct Market {
    epoch: Epoch,
    hosts: Vec<(String, String)>,
}

impl Market {
    fn new() -> Self {
        let mut draw = Draw(1);
        let mut epoch = Epoch::random(5, None);
        (epoch.events, epoch.leases, epoch.idle, epoch.verdicts) = (vec![], vec![], vec![], vec![]);
        epoch.header.emission = 4_000_000_000_000;
        let hotkey = |number| format!("5{number:047}");
        let miner = |number| Miner { hotkey: hotkey(number), verified_hosts: 39, ..Miner::default() };
        epoch.miners = (0..MINERS).map(miner).collect();
        let mut hosts: Vec<_> = (0..HOSTS).map(|n| (uuid(&mut draw), hotkey(n % MINERS))).collect();
        hosts.sort();
        let idle = |(host, hotkey): &(String, String)| Idle {
            class: "h100-80g".into(),
            device_ms: draw.below(28_800_000),
            gpu_hour: 1_900_000,
            host: host.clone(),
            hotkey: hotkey.clone(),
            obliged_since_ms: 0,
        };
        epoch.idle = hosts.iter().map(idle).collect();
        Self { epoch, hosts }
    }

    /// All leases, made while they are looked at.
    fn leases(&self) -> impl Iterator<Item = Lease> {
        let mut draw = Draw(2);
        (0..LEASES).map(move |number| {
            let mut lease = draw.lease(&self.epoch);
            let host = draw.below(10_000);
            (lease.host, lease.hotkey) = self.hosts[usize::try_from(host).expect("small")].clone();
            lease.lease = format!("{number:08x}-{}", &uuid(&mut draw)[9..]);
            (lease.job, lease.customer) = (uuid(&mut draw), uuid(&mut draw));
            lease
        })
    }

    fn settle(&self, leases: &[Lease]) -> Settlement {
        let mut settling = Settling::new(&self.epoch.header, &self.epoch.params).expect("sound");
        self.epoch.classes.iter().for_each(|class| settling.class(class).expect("sound"));
        self.epoch.miners.iter().for_each(|miner| settling.miner(miner).expect("sound"));
        for lease in leases {
            black_box(settling.lease(lease).expect("sound"));
        }
        self.epoch.idle.iter().for_each(|idle| settling.idle(idle).expect("sound"));
        settling.finish().expect("it adds up")
    }

    fn bundle(&self, leases: &[Lease], settlement: &Settlement) -> Vec<u8> {
        let (before, after): (Vec<_>, Vec<_>) =
            self.epoch.records().into_iter().partition(|record| !matches!(record, Record::Idle(_)));
        let mut writer = Writer::new(Vec::new(), NO_HEAD);
        let mut push = |record: Record| writer.push(&record).expect("in order");
        before.into_iter().for_each(&mut push);
        leases.iter().cloned().map(Record::Lease).for_each(&mut push);
        after.into_iter().for_each(&mut push);
        settlement.pays.values().cloned().map(Record::Pay).for_each(&mut push);
        push(Record::Result(settlement.result.clone()));
        writer.seal(sign).expect("written").0
    }
}

fn settlement(criterion: &mut Criterion) {
    let market = Market::new();
    let leases: Vec<Lease> = market.leases().collect();
    let settlement = market.settle(&leases);
    let bundle = market.bundle(&leases, &settlement);
    println!("the bundle has {} bytes", bundle.len());
    if let Ok(path) = std::env::var("BUNDLE") {
        std::fs::write(path, &bundle).expect("a place for the bundle");
    }
    let mut group = criterion.benchmark_group("epoch");
    group.sample_size(10);
    group.bench_function("settle", |bencher| bencher.iter(|| market.settle(&leases)));
    group.bench_function("write", |bencher| bencher.iter(|| market.bundle(&leases, &settlement)));
    group.bench_function("audit", |bencher| {
        bencher.iter(|| audit(Cursor::new(&bundle), None).expect("it is what follows"));
    });
    group.finish();
}

criterion_group!(benches, settlement);
criterion_main!(benches);
