//! One look after the other: what a planner keeps changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use nave_domain::{
    HostId, LeaseId, MicroUsd, MilliCpu, Millis, QuoteId, Timestamp,
    fraction::{Division, Slice},
};
use nave_scheduler::planner::{Plan, Planner};
use nave_store::{AskedQuote, Occupied, QueuedJob, Snapshot, SupplyHost, Yielding};
use proptest::{collection::vec, option, prelude::*};
use uuid::Uuid;

use crate::{
    properties::{any_place, any_wish},
    supply::{NOW, customer_id, host, host_id, job, job_id, snapshot},
};

/// What happens between two looks.
#[derive(Debug, Clone)]
struct Turn {
    /// Hosts that are there now or not any more, each in one of two states.
    moves: Vec<(usize, Option<bool>)>,
    /// Jobs that wait.
    queue: BTreeSet<usize>,
    /// Whether the plan before it is carried out.
    is_carried_out: bool,
    later_ms: i64,
    /// What clouds ask for a class.
    clouds: Option<i64>,
    /// Whether one host is about to end.
    ends: bool,
}

prop_compose! {
    fn any_turn()(
        moves in vec((0..8_usize, option::weighted(0.8, any::<bool>())), 0..5),
        queue in proptest::collection::btree_set(0..24_usize, 0..24),
        is_carried_out in any::<bool>(), later_ms in 0..400_000_i64,
        clouds in option::of(0..2_i64), ends in any::<bool>(),
    ) -> Turn {
        Turn { moves, queue, is_carried_out, later_ms, clouds: clouds.map(|price| price * 3_000_000), ends }
    }
}

prop_compose! {
    /// A place with devices of every kind.
    fn any_divided()(mut host in any_place(), kinds in vec(0..4_u8, 5), yields in any::<bool>()) -> SupplyHost {
        for (device, kind) in host.inventory.devices.iter_mut().zip(kinds) {
            device.division = match kind {
                0 | 1 => Division::Whole,
                2 => Division::Shares,
                _ => Division::Slices(vec![Slice {
                    uuid: format!("MIG-{}", device.uuid), profile: "half".into(), milli: nave_domain::MilliGpu(500),
                    vram: nave_domain::Bytes(device.vram.0 / 2),
                }]),
            };
        }
        if yields && !host.devices_used.is_empty() {
            let part = Occupied {
                customer: customer_id(7), alone: false,
                size: nave_domain::rate::Size { milli_gpu: nave_domain::MilliGpu(1_000), milli_cpu: host.milli_cpu_used, memory: host.memory_used },
                disk: host.disk_used, devices: host.devices_used.clone(), share: None, order_bytes: 0,
            };
            host.yielding = vec![Yielding { lease: LeaseId(Uuid::from_u128(9)), part, used: Millis(60_000), is_ending: false }];
        }
        host
    }
}

prop_compose! {
    fn any_divisible()(mut job in any_wish(), share in option::of(100..1_000_u16), waited in 0..600_000_i64) -> QueuedJob {
        if let Some(gpu) = &mut job.request.resources.gpu {
            gpu.share = share;
        }
        job.queued = Millis(waited);
        job.request.limits.queue_ms = Millis(10_000_000);
        job
    }
}

/// A market that goes on.
struct Course {
    places: Vec<(SupplyHost, SupplyHost)>,
    jobs: Vec<QueuedJob>,
    hosts: BTreeMap<HostId, SupplyHost>,
    now: Timestamp,
}

impl Course {
    fn next(&mut self, turn: &Turn, before: &Plan) -> Snapshot {
        if turn.is_carried_out {
            for placement in &before.placements {
                let job = self.jobs.iter().find(|job| job.job == placement.job);
                let (Some(host), Some(job)) = (self.hosts.get_mut(&placement.host), job) else { continue };
                host.generation += 1;
                host.occupy(Occupied {
                    customer: job.customer,
                    alone: false,
                    size: placement.size,
                    disk: placement.disk,
                    devices: placement.devices.clone(),
                    share: placement.share,
                    order_bytes: job.order_bytes,
                });
            }
        }
        for (at, state) in &turn.moves {
            let Some((one, other)) = self.places.get(*at) else { continue };
            let id = host_id(1 + *at as u128);
            match state {
                None => drop(self.hosts.remove(&id)),
                Some(first) => drop(self.hosts.insert(id, if *first { one.clone() } else { other.clone() })),
            }
        }
        self.now = self.now.after(Millis(turn.later_ms));
        let queued = turn.queue.iter().filter_map(|at| self.jobs.get(*at).cloned()).collect();
        let clouds = turn.clouds.map(|price| (("a100-80".to_owned(), None), MicroUsd(price)));
        let mut hosts = self.hosts.clone();
        if let Some(host) = hosts.values_mut().next().filter(|_| turn.ends) {
            host.lasts = Some(Millis(turn.later_ms));
        }
        let asked = turn.queue.first().and_then(|at| self.jobs.get(*at));
        let quote = asked.map(|job| AskedQuote {
            quote: QuoteId(Uuid::from_u128(5)),
            customer: job.customer,
            request: job.request.clone(),
            asked_at: self.now,
            is_held: turn.ends,
        });
        Snapshot {
            now: self.now,
            hosts,
            quotes: quote.into_iter().collect(),
            baselines: clouds.into_iter().collect(),
            ..snapshot(queued, Vec::new())
        }
    }
}

/// Lets a course be followed by a planner that keeps what it has seen, and by one that reads the market anew at each look.
fn follow(mut course: Course, turns: &[Turn]) -> Result<(), TestCaseError> {
    for (number, job) in (1..).zip(&mut course.jobs) {
        job.job = job_id(number);
    }
    let (mut keeps, mut forgets, mut before) = (Planner::default(), Planner::default(), Plan::default());
    for turn in turns {
        let snapshot = course.next(turn, &before);
        forgets.forget_hosts();
        before = keeps.plan(&snapshot);
        prop_assert_eq!(&before, &forgets.plan(&snapshot));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn a_planner_that_has_followed_the_market_plans_what_one_does_that_reads_it_anew(
        places in vec((any_divided(), any_divided()), 8), jobs in vec(any_divisible(), 24), turns in vec(any_turn(), 1..8),
    ) {
        follow(Course { places, jobs, hosts: BTreeMap::new(), now: NOW }, &turns)?;
    }

    #[test]
    fn what_is_told_of_jobs_that_differ_in_money_only_is_remembered_of_each_while_prices_move(
        kinds in vec(any_divisible(), 2), money in vec((0..4_000_i64, option::of(0..9_000_000_i64)), 24),
        places in vec((any_divided(), 0..9_000_000_i64), 8), turns in vec(any_turn(), 1..8),
    ) {
        let of_kind = |(kind, (left, most)): (&QueuedJob, (i64, Option<i64>))| {
            let mut job = QueuedJob { left: MicroUsd(left), ..kind.clone() };
            job.request.max_price = most.filter(|most| most % 2 == 0).map(MicroUsd);
            job
        };
        let moves = |(host, price): (SupplyHost, i64)| {
            let mut moved = host.clone();
            moved.rate.vcpu_hour = MicroUsd(price);
            (host, moved)
        };
        let jobs = kinds.iter().cycle().zip(money).map(of_kind).collect();
        let places = places.into_iter().map(moves).collect();
        follow(Course { places, jobs, hosts: BTreeMap::new(), now: NOW }, &turns)?;
    }
}

#[test]
fn a_job_that_can_pay_waits_although_one_that_asked_for_the_same_before_could_not() {
    let asks = |left| {
        let mut job = job(1);
        (job.request.resources.milli_cpu, job.left) = (MilliCpu(4_000), MicroUsd(left));
        job
    };
    let mut small = host();
    small.inventory.milli_cpu = MilliCpu(1_000);
    let mut dear = host();
    (dear.rate.vcpu_hour, dear.milli_cpu_used) = (MicroUsd(10_000_000), dear.inventory.milli_cpu);
    let mut planner = Planner::default();
    let code = |plan: Plan| plan.waiting.into_iter().chain(plan.failed).map(|(_, why)| why.code).next();
    assert_eq!(code(planner.plan(&snapshot(vec![asks(2_000)], vec![small.clone()]))), Some("no_host_fits"));
    let hosts = || vec![small.clone(), dear.clone()];
    assert_eq!(code(planner.plan(&snapshot(vec![asks(20_000)], hosts()))), Some("waiting_for_capacity"));
    assert_eq!(code(planner.plan(&snapshot(vec![asks(2_000)], hosts()))), Some("spend_cap"));
}
