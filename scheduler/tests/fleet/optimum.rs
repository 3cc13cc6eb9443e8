//! Batches beside the best that can be done with them, found by trying everything.

use nave_scheduler::fleet::{Fleet, Gang, Gpus, Handle, Host, Places, Rate, Request};

use super::{GIB, GPU_HOUR, demand, host};

/// Repeatable small numbers (Knuth's MMIX generator).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn small<T: TryFrom<u64>>(&mut self, end: u64) -> T {
        T::try_from(self.below(end)).unwrap_or_else(|_| panic!("{end} is small"))
    }
}

struct Case {
    fleet: Fleet,
    hosts: Vec<(Handle, Host)>,
    gangs: Vec<Gang>,
}

fn random_host(random: &mut Random) -> Host {
    let devices = random.small(4);
    Host {
        milli_cpu: 4_000 + 4_000 * random.small::<u32>(6),
        memory_mib: 16 * GIB + 16 * GIB * random.small::<u32>(4),
        class: random.small(2),
        rate: Rate { gpu_hour: GPU_HOUR + 50_000 * random.small::<i64>(8), ..host(0).rate },
        loss_ppm: 10_000 * random.small::<u32>(4),
        order_bytes: u32::MAX,
        start_s: 30 * random.small::<u32>(4),
        ..host(devices)
    }
}

fn random_request(random: &mut Random) -> Request {
    let gpus = match random.below(6) {
        0 => Gpus::None,
        1 | 2 => {
            let milli = 100 + 100 * random.small::<u16>(9);
            Gpus::Share { milli, vram_mib: 2 * GIB * random.small::<u32>(12) }
        }
        3 | 4 => Gpus::Whole { count: 1, vram_mib: 0 },
        _ => Gpus::Whole { count: 2, vram_mib: 0 },
    };
    Request {
        classes: if random.below(4) == 0 { 1 << random.below(2) } else { u64::MAX },
        redo_minutes: 60,
        ..Request::new(1_000 + 1_000 * random.small::<u32>(8), GIB + GIB * random.small::<u32>(24), gpus)
    }
}

fn case(seed: u64) -> Case {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let count = 2 + random.below(3);
    let (mut fleet, handles) = super::fleet((0..count).map(|_| random_host(&mut random)));
    // What is expected later wants no class and no devices together, so that the cost of a
    // plan is what is paid and what is stranded, whatever the order.
    let later: Vec<Request> =
        (0..6).map(|_| Request { classes: u64::MAX, ..random_request(&mut random) }).collect();
    let later: Vec<Request> = later.into_iter().filter(|request| request.whole() < 2).collect();
    fleet.learn(&demand(&later));
    let hosts = handles.iter().map(|handle| (*handle, fleet.host(*handle).expect("it is there").clone()));
    let hosts = hosts.collect();
    let gangs = (0..2 + random.below(3)).map(|id| Gang {
        id,
        members: (0..1 + random.below(5) / 4).map(|_| random_request(&mut random)).collect(),
    });
    let gangs = gangs.collect();
    Case { fleet, hosts, gangs }
}

/// What a gang loses by waiting, in micro-USD: three times what it would pay at the least.
fn waiting(case: &Case, gang: &Gang) -> i64 {
    let cheapest =
        |request: &Request| case.hosts.iter().map(|(_, host)| host.hourly(request)).min().unwrap_or(0);
    gang.members.iter().map(|member| 3 * cheapest(member)).sum()
}

fn paid(case: &Case, host: Handle, request: &Request) -> i64 {
    let (_, host) = case.hosts.iter().find(|(handle, _)| *handle == host).expect("a host of the case");
    assert!(host.hourly(request) <= request.hourly_max);
    host.expected(request) + i64::from(request.gpus == Gpus::None && !host.vram_mib.is_empty())
}

/// What a plan costs: what is paid, what is stranded then, and what waiting loses.
fn cost(case: &Case, planned: &Fleet, places: &[Option<Places>]) -> i64 {
    let of = |(gang, places): (&Gang, &Option<Places>)| match places {
        None => waiting(case, gang),
        Some(places) => {
            gang.members.iter().zip(places).map(|(member, choice)| paid(case, choice.host, member)).sum()
        }
    };
    case.gangs.iter().zip(places).map(of).sum::<i64>() + planned.stranded()
}

/// All ways to put a request on a host.
fn ways(host: &Host, request: &Request) -> Vec<Vec<u8>> {
    let devices = u8::try_from(host.vram_mib.len()).expect("few devices");
    match request.gpus {
        Gpus::None => vec![Vec::new()],
        Gpus::Share { .. } => (0..devices).map(|device| vec![device]).collect(),
        Gpus::Whole { count: 1, .. } => (0..devices).map(|device| vec![device]).collect(),
        Gpus::Whole { .. } => {
            let pairs = (0..devices).flat_map(|one| (one + 1..devices).map(move |other| vec![one, other]));
            pairs.collect()
        }
    }
}

/// The least cost of all plans in which nobody waits who fits: each member in turn on every
/// host and device, or its gang waits.
fn optimum(case: &Case, fleet: &mut Fleet, gang: usize, member: usize, waits: &mut Vec<usize>) -> i64 {
    let Some(at) = case.gangs.get(gang) else {
        let refused = waits.iter().any(|gang| fleet.clone().place_gang(&case.gangs[*gang]).is_some());
        return if refused { i64::MAX } else { fleet.stranded() };
    };
    let Some(request) = at.members.get(member) else { return optimum(case, fleet, gang + 1, 0, waits) };
    let mut best = i64::MAX;
    if member == 0 {
        waits.push(gang);
        best = waiting(case, at).saturating_add(optimum(case, fleet, gang + 1, 0, waits));
        waits.pop();
    }
    for (handle, host) in &case.hosts {
        if request.classes >> host.class & 1 == 0 {
            continue;
        }
        for devices in ways(host, request) {
            if fleet.place(*handle, request, &devices) {
                let rest = optimum(case, fleet, gang, member + 1, waits);
                best = best.min(paid(case, *handle, request).saturating_add(rest));
                fleet.release(*handle, request, &devices);
            }
        }
    }
    best
}

#[test]
fn batches_cost_little_more_than_the_best_of_all_plans() {
    // Others than those that the planner was made with.
    let mut gaps: Vec<i64> = (400_000..401_000)
        .map(|seed| {
            let case = case(seed);
            let mut planned = case.fleet.clone();
            let places = planned.place_batch(&case.gangs);
            let ours = cost(&case, &planned, &places);
            let best = optimum(&case, &mut case.fleet.clone(), 0, 0, &mut Vec::new());
            assert!(ours >= best, "case {seed}: nothing is cheaper than the best");
            // In parts of 10 000.
            (ours - best) * 10_000 / best.max(1)
        })
        .collect();
    gaps.sort_unstable();
    let (median, worst) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    println!("gap in parts of 10 000: median {median}, 99 % {}, worst {worst}", gaps[990]);
    assert!(median <= 200, "median {median}");
    assert!(worst <= 1_500, "worst {worst}");
}
