//! Which jobs are worth a machine, and which machine.

use nave_domain::job::TermWish;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const NOW: Timestamp = Timestamp(1_795_000_000_000);

fn offer(id: &str, dollars: i64, devices: u32) -> CloudOffer {
    CloudOffer {
        cloud: Cloud::Lambda,
        id: id.to_owned(),
        region: "us-west-1".to_owned(),
        model: "A10 (24 GB PCIe)".to_owned(),
        class: Some("a10"),
        devices,
        vram_each: Some(Bytes(24 * Bytes::GIB)),
        cpu: MilliCpu(30_000),
        memory: Bytes(200 * Bytes::GIB),
        disk: Bytes(1_400 * Bytes::GIB),
        price: MicroUsd(dollars * 1_000_000),
        billing: Cloud::Lambda.terms().billing,
        availability: Availability::Available(None),
        fetched_at: NOW,
        raw: String::new(),
    }
}

fn job(number: u128) -> WaitingJob {
    let mut request = JobRequest::of(vec!["true".into()]);
    request.resources.gpu = Some(GpuRequest::default());
    request.max_spend = MicroUsd(20_000_000);
    WaitingJob {
        job: JobId(Uuid::from_u128(number)),
        customer: CustomerId(Uuid::from_u128(number % 2)),
        left: request.max_spend,
        request,
        queued_at: Timestamp(NOW.0 - 600_000),
        queued: Millis::ZERO,
        code: "no_host_fits".into(),
        machines: 0,
    }
}

/// The job with another request.
fn asking(change: impl FnOnce(&mut JobRequest)) -> WaitingJob {
    let mut job = job(1);
    change(&mut job.request);
    job
}

fn bought(jobs: &[WaitingJob], offers: &[CloudOffer]) -> Vec<String> {
    bought_within(jobs, offers, &Limits { share_percent: 0, ..Limits::default() })
}

fn bought_within(jobs: &[WaitingJob], offers: &[CloudOffer], limits: &Limits) -> Vec<String> {
    let purchases = demand(jobs, offers, &[], &BTreeSet::new(), limits, NOW);
    purchases.into_iter().map(|purchase| purchase.offer.id).collect()
}

fn rented(of: &CloudOffer, is_free: bool) -> Rented {
    Rented { shape: shape(of, 10), price_max: of.price, is_free }
}

#[test]
fn a_job_that_no_host_takes_gets_the_cheapest_machine_that_fits() {
    let offers = [offer("dear", 3, 1), offer("cheap", 1, 1), offer("eight", 9, 8)];
    assert_eq!(bought(&[job(1)], &offers), ["cheap"]);
    let of_eight =
        asking(|request| request.resources.gpu = Some(GpuRequest { count: 8, ..GpuRequest::default() }));
    assert_eq!(bought(&[of_eight], &offers), ["eight"]);
}

#[test]
fn each_wish_of_a_job_is_met_or_nothing_is_rented() {
    let gpu = GpuRequest::default;
    let gib = |count| Bytes(count * Bytes::GIB);
    let fine: [fn(&mut JobRequest); 3] = [
        |request| request.region = "us-west-1".parse().ok(),
        |request| request.term = TermWish::OnDemand,
        |request| {
            request.resources.gpu =
                Some(GpuRequest { models: vec!["H100".into(), "a10".into()], ..GpuRequest::default() })
        },
    ];
    for change in fine {
        assert_eq!(bought(&[asking(change)], &[offer("a10", 1, 1)]), ["a10"]);
    }
    let unmet = [
        asking(|request| request.region = "eu".parse().ok()),
        asking(|request| request.term = TermWish::Spot),
        asking(|request| request.trust = [Trust::Verified].into()),
        asking(|request| request.max_price = Some(MicroUsd(900_000))),
        asking(|request| request.resources.gpu = Some(GpuRequest { count: 2, ..gpu() })),
        asking(|request| request.resources.gpu = Some(GpuRequest { vram: gib(40), ..gpu() })),
        asking(|request| request.resources.gpu = Some(GpuRequest { vram_max: Some(gib(16)), ..gpu() })),
        asking(|request| request.resources.gpu = Some(GpuRequest { models: vec!["H100".into()], ..gpu() })),
        asking(|request| request.resources.memory = gib(200)),
        asking(|request| request.resources.disk = gib(1_000)),
        asking(|request| request.resources.milli_cpu = MilliCpu(31_000)),
        asking(|request| request.limits.run_ms = Millis(13 * 3_600_000)),
        asking(|request| request.limits.run_ms = Millis(12 * 3_600_000 - 899_999)),
        asking(|request| request.apart = Some(Uuid::nil())),
    ];
    for job in unmet {
        assert!(bought(std::slice::from_ref(&job), &[offer("a10", 1, 1)]).is_empty(), "{:?}", job.request);
    }
}

#[test]
fn what_placements_take_for_the_end_of_a_machine_is_when_its_keeper_gives_it_back() {
    let keepers = nave_clouds::Rules::of(Cloud::Lambda).margin;
    assert_eq!((keepers, nave_clouds::Rules::of(Cloud::Local).margin), (MachineRow::MARGIN, keepers));
}

#[test]
fn whoever_cannot_pay_for_what_is_expected_gets_no_machine() {
    let short = WaitingJob { left: MicroUsd(100_000), ..job(1) };
    assert!(bought(std::slice::from_ref(&short), &[offer("a10", 1, 1)]).is_empty());
    let mut quick = short;
    quick.request.expected_ms = Some(Millis(60_000));
    assert_eq!(bought(&[quick], &[offer("a10", 1, 1)]), ["a10"]);
}

#[test]
fn jobs_together_pay_a_share_of_a_machine_or_it_is_not_rented() {
    let usual = Limits::default();
    let jobs: Vec<WaitingJob> = (1..=4).map(job).collect();
    let eight = [offer("eight", 8, 8)];
    assert!(bought_within(&jobs[..3], &eight, &usual).is_empty(), "three of eight GPUs");
    assert_eq!(bought_within(&jobs, &eight, &usual), ["eight"], "with CPU and memory more than half of it");
    assert_eq!(bought_within(&jobs[..3], &eight, &Limits { share_percent: 25, ..usual }), ["eight"]);
    let small = asking(|request| request.resources.gpu = None);
    assert!(bought_within(&[small], &eight, &usual).is_empty());
}

#[test]
fn jobs_that_end_before_they_have_paid_for_the_boot_have_no_machine_rented() {
    let a10 = [offer("a10", 1, 1)];
    let expecting = |ms| asking(|request| request.expected_ms = Some(Millis(ms)));
    let is_bought = |job| !bought_within(&[job], &a10, &Limits::default()).is_empty();
    assert!(!is_bought(expecting(1)));
    assert!(!is_bought(expecting(300_000)), "five minutes, where booting and idling take twelve");
    assert!(is_bought(expecting(600_000)));
}

#[test]
fn the_first_model_wins_over_the_cheapest() {
    let h100 =
        CloudOffer { model: "H100 (80 GB SXM5)".into(), class: Some("h100-sxm"), ..offer("h100", 3, 1) };
    let first = asking(|request| {
        request.resources.gpu =
            Some(GpuRequest { models: vec!["H100".into(), "A10".into()], ..GpuRequest::default() });
    });
    assert_eq!(bought(&[first], &[offer("a10", 1, 1), h100]), ["h100"]);
}

#[test]
fn a_job_waits_for_busy_hosts_before_a_machine_is_rented() {
    let waits =
        |code: &str, ms: i64| WaitingJob { code: code.into(), queued_at: Timestamp(NOW.0 - ms), ..job(1) };
    let is_bought = |job| !bought(&[job], &[offer("a10", 1, 1)]).is_empty();
    assert!(!is_bought(waits("waiting_for_capacity", 59_000)));
    assert!(is_bought(waits("waiting_for_capacity", 61_000)));
    assert!(!is_bought(waits("no_host_in_region", 14_000)));
    assert!(is_bought(waits("no_host_in_region", 16_000)));
    assert!(!is_bought(waits("backing_off", 600_000)), "a machine would change nothing");
    assert!(!is_bought(WaitingJob { queued: Millis(50_000), ..waits("gang_waits", 20_000) }), "a new wait");
}

#[test]
fn no_machine_is_rented_for_a_job_that_waits_no_longer_when_it_is_ready() {
    let left = |left: i64, queued: i64| {
        let mut job = WaitingJob { queued: Millis(queued), ..job(1) };
        job.request.limits.queue_ms = Millis(600_000 + queued + left);
        !bought(&[job], &[offer("a10", 1, 1)]).is_empty()
    };
    assert!(left(600_000, 0) && left(600_000, 90_000));
    assert!(!left(599_999, 0) && !left(599_999, 90_000), "what it waited before counts, too");
}

#[test]
fn one_machine_serves_all_waiting_jobs_that_fit_it() {
    let jobs: Vec<WaitingJob> = (1..=10).map(job).collect();
    assert_eq!(bought(&jobs, &[offer("eight", 4, 8)]), ["eight", "eight"]);
    let mut alone = jobs.clone();
    alone[0].request.isolation = Isolation::Host;
    let bought = bought(&alone[..3], &[offer("eight", 2, 8)]);
    assert_eq!(bought.len(), 2, "the first has one for itself and its customer");
}

#[test]
fn what_is_rented_already_causes_no_second_machine() {
    let a10 = offer("a10", 1, 1);
    let rents = |rented: &[Rented]| {
        demand(&[job(1)], std::slice::from_ref(&a10), rented, &BTreeSet::new(), &Limits::default(), NOW).len()
    };
    assert_eq!(rents(&[rented(&a10, true)]), 0, "it boots or is idle");
    assert_eq!(rents(&[rented(&a10, false)]), 1, "it works");
    assert_eq!(rents(&[rented(&offer("none", 1, 0), true)]), 1, "it would not do");
}

#[test]
fn the_operators_limits_hold() {
    let a10 = offer("a10", 3, 1);
    let jobs: Vec<WaitingJob> = (1..=10).map(job).collect();
    let rents = |limits: Limits, rented: &[Rented]| {
        demand(&jobs, std::slice::from_ref(&a10), rented, &BTreeSet::new(), &limits, NOW).len()
    };
    let usual = Limits::default();
    assert_eq!(rents(usual, &[]), 3, "3.30 dollars each, of 10");
    assert_eq!(rents(Limits { hourly: MicroUsd(100_000_000), ..usual }, &[]), 4);
    assert_eq!(rents(usual, &[rented(&a10, false)]), 2);
    assert_eq!(rents(Limits { machines: 0, ..usual }, &[]), 0);
}

#[test]
fn what_cannot_be_had_or_came_to_nothing_or_is_a_container_is_not_rented() {
    let a10 = offer("a10", 1, 1);
    let gone = CloudOffer { availability: Availability::SoldOut, ..a10.clone() };
    let none_left = CloudOffer { availability: Availability::Available(Some(0)), ..a10.clone() };
    let old = CloudOffer { fetched_at: Timestamp(NOW.0 - 3_600_000), ..a10.clone() };
    let container = CloudOffer { cloud: Cloud::Runpod, ..a10.clone() };
    let vague = CloudOffer { memory: Bytes::ZERO, ..a10.clone() };
    for offer in [gone, none_left, old, container, vague] {
        assert!(bought(&[job(1)], &[offer]).is_empty());
    }
    let refused = [(Cloud::Lambda, "a10".to_owned(), "us-west-1".to_owned())].into();
    let next = demand(&[job(1)], &[a10, offer("next", 2, 1)], &[], &refused, &Limits::default(), NOW);
    assert_eq!(next.first().map(|purchase| purchase.offer.id.as_str()), Some("next"));
}

#[test]
fn a_job_for_which_machines_were_paid_in_vain_gets_no_third() {
    assert!(bought(&[WaitingJob { machines: 2, ..job(1) }], &[offer("a10", 1, 1)]).is_empty());
}

#[test]
fn jobs_that_fill_a_machine_pay_what_it_costs_and_the_margin() {
    let eight = offer("eight", 8, 8);
    let Shape { rate, cpu, memory, region, .. } = shape(&eight, 10).expect("enough is said");
    let whole =
        rate.gpu_hour.0 * 8 + rate.vcpu_hour.0 * cpu.0 / 1_000 + rate.gib_hour.0 * (memory.0 / Bytes::GIB);
    assert!((8_790_000..=8_810_000).contains(&whole), "{whole}");
    assert_eq!(region.map(|region| region.to_string()).as_deref(), Some("us-west-1"));
}

fn machine(host: Option<HostState>, is_busy: bool, demand: MachineDemand) -> RentedMachine {
    let row = MachineRow {
        machine: Uuid::nil(),
        version: 1,
        cloud: "lambda".into(),
        made_at: NOW,
        demand,
        enrolled_at: host.map(|_| NOW),
        ending: None,
        is_closed: false,
        cost: MicroUsd::ZERO,
        known: serde_json::Value::Null,
        shape: None,
        job: None,
        host: None,
    };
    RentedMachine { row, host, is_busy, is_long_busy: is_busy, job_waits: false }
}

#[test]
fn a_machine_is_wanted_while_it_boots_or_works_and_idle_otherwise() {
    use HostState as S;
    use MachineDemand::{Idle, Released, Wanted};
    let said = |host, is_busy, is_asked| wanted(&machine(host, is_busy, Wanted), is_asked, NOW);
    assert_eq!(said(None, false, true), Wanted, "it is asked for, and serves whoever waits then");
    assert_eq!(said(None, false, false), Released, "its job has a place, or is gone");
    assert_eq!(said(Some(S::Verifying), false, true), Wanted);
    assert_eq!(said(Some(S::Ready), true, true), Wanted);
    assert_eq!(said(Some(S::Ready), false, true), Idle(NOW));
    assert_eq!(said(Some(S::Refused), false, true), Released);
    assert_eq!(said(Some(S::Gone), false, true), Released);
    let since = Idle(Timestamp(NOW.0 - 5));
    assert_eq!(wanted(&machine(Some(S::Ready), false, since), true, NOW), since);
    let late = Timestamp(NOW.0 + PROVE_MAX.0);
    assert_eq!(wanted(&machine(Some(S::Verifying), false, Wanted), true, late), Idle(late));
}

proptest! {
    #[test]
    fn no_jobs_and_no_offers_get_past_the_limits(
        prices in prop::collection::vec((1..20_i64, 0..9_u32), 0..12), counts in prop::collection::vec(1..9_u8, 0..30),
        machines in 0..6_u32, hourly in 0..40_i64,
    ) {
        let offers: Vec<CloudOffer> =
            prices.iter().enumerate().map(|(at, (price, devices))| offer(&at.to_string(), *price, *devices)).collect();
        let jobs: Vec<WaitingJob> = counts.iter().zip(1..).map(|(count, number)| {
            let mut job = job(number);
            job.request.resources.gpu = Some(GpuRequest { count: *count, ..GpuRequest::default() });
            job
        }).collect();
        let limits = Limits { machines, hourly: MicroUsd(hourly * 1_000_000), ..Limits::default() };
        let purchases = demand(&jobs, &offers, &[], &BTreeSet::new(), &limits, NOW);
        let spent: i64 = purchases.iter().map(|purchase| purchase.price_max.0).sum();
        prop_assert!(purchases.len() <= machines as usize && spent <= limits.hourly.0);
        // What was chosen serves all that it was chosen for: looking again wants nothing more of the kind.
        let rented: Vec<Rented> = purchases.iter().map(|purchase| Rented {
            shape: Some(purchase.shape.clone()), price_max: purchase.price_max, is_free: true,
        }).collect();
        let again = demand(&jobs, &offers, &rented, &BTreeSet::new(), &limits, NOW);
        prop_assert!(purchases.len() + again.len() <= machines as usize);
        let served: BTreeSet<JobId> = purchases.iter().map(|purchase| purchase.job).collect();
        prop_assert!(again.iter().all(|purchase| !served.contains(&purchase.job)));
    }
}
