//! Which jobs are worth a machine, and which machine.

use nave_clouds::provider::Cloud;
use nave_domain::{
    Bytes, CustomerId, MilliCpu,
    fraction::Division,
    host::{Device, HostState, Inventory, Proven, ProvenDevice, Runtime, Trust},
    job::{Isolation, JobRequest, TermWish},
    wish::GpuRequest,
};
use nave_store::{MachineDemand, RentedMachine};
use proptest::prelude::*;
use uuid::Uuid;

use super::{
    keep::{GANG_MAX, HOLD_MAX, PROVE_MAX, UNUSED},
    *,
};

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
        gang: None,
        in_vain: 0,
        not_rented: None,
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
    let purchases = demand(jobs, offers, &Models::new(), &[], &BTreeSet::new(), limits, NOW);
    purchases.into_iter().map(|purchase| purchase.offer.id).collect()
}

fn rented(of: &CloudOffer, is_free: bool) -> Rented {
    let machine = Uuid::from_u128(u128::from(of.devices));
    Rented { machine, job: None, shape: shape(of, &Models::new(), 10), price_max: of.price, is_free }
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
        let (offers, limits) = (std::slice::from_ref(&a10), Limits::default());
        demand(&[job(1)], offers, &Models::new(), rented, &BTreeSet::new(), &limits, NOW).len()
    };
    assert_eq!(rents(&[rented(&a10, true)]), 0, "it boots or is idle");
    assert_eq!(rents(&[rented(&a10, false)]), 1, "it works");
    assert_eq!(rents(&[rented(&offer("none", 1, 0), true)]), 1, "it would not do");
}

#[test]
fn nobody_takes_the_machine_of_a_job_that_waits_for_it() {
    let eight = offer("eight", 8, 8);
    let mut large = job(2);
    large.request.resources.gpu = Some(GpuRequest { count: 8, ..GpuRequest::default() });
    let jobs = [job(1), large];
    let rents = |rented: &[Rented]| {
        let (offers, limits) = (std::slice::from_ref(&eight), Limits::default());
        demand(&jobs, offers, &Models::new(), rented, &BTreeSet::new(), &limits, NOW)
    };
    let [purchase] = &rents(&[])[..] else { panic!("one machine, for the one that pays for it") };
    assert_eq!(purchase.job, jobs[1].job);
    let booting = Rented { job: Some(jobs[1].job), ..rented(&eight, true) };
    assert_eq!(rents(std::slice::from_ref(&booting)), []);
    assert_eq!(needs(&jobs, &[booting], &Limits::default()).len(), 1);
}

#[test]
fn the_operators_limits_hold() {
    let a10 = offer("a10", 3, 1);
    let jobs: Vec<WaitingJob> = (1..=10).map(job).collect();
    let rents = |limits: Limits, rented: &[Rented]| {
        let offers = std::slice::from_ref(&a10);
        demand(&jobs, offers, &Models::new(), rented, &BTreeSet::new(), &limits, NOW).len()
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
    let offers = [a10, offer("next", 2, 1)];
    let next = demand(&[job(1)], &offers, &Models::new(), &[], &refused, &Limits::default(), NOW);
    assert_eq!(next.first().map(|purchase| purchase.offer.id.as_str()), Some("next"));
}

#[test]
fn a_job_for_which_machines_were_paid_in_vain_gets_no_third() {
    assert!(bought(&[WaitingJob { machines: 2, ..job(1) }], &[offer("a10", 1, 1)]).is_empty());
}

#[test]
fn jobs_that_fill_a_machine_pay_what_it_costs_and_the_margin() {
    let eight = offer("eight", 8, 8);
    let Shape { rate, cpu, memory, region, .. } = shape(&eight, &Models::new(), 10).expect("enough is said");
    let whole =
        rate.gpu_hour.0 * 8 + rate.vcpu_hour.0 * cpu.0 / 1_000 + rate.gib_hour.0 * (memory.0 / Bytes::GIB);
    assert!((8_790_000..=8_810_000).contains(&whole), "{whole}");
    assert_eq!(region.map(|region| region.to_string()).as_deref(), Some("us-west-1"));
}

/// A gang of so many jobs, all of which wait.
fn gang(of: u8) -> Vec<WaitingJob> {
    let member = |number| {
        let mut member = WaitingJob { gang: Some(JobId(Uuid::from_u128(1))), ..job(number) };
        (member.request.group, member.request.gang) = (Some("g".into()), Some(of));
        WaitingJob { code: "gang_waits".into(), customer: CustomerId(Uuid::nil()), ..member }
    };
    (1..=u128::from(of)).map(member).collect()
}

#[test]
fn a_gang_has_machines_for_all_of_its_jobs_or_none() {
    let one = [offer("one", 2, 1)];
    let rents = |jobs: &[WaitingJob], rented: &[Rented], machines: u32| {
        let limits = Limits { machines, ..Limits::default() };
        demand(jobs, &one, &Models::new(), rented, &BTreeSet::new(), &limits, NOW).len()
    };
    let four = gang(4);
    assert_eq!(rents(&four, &[], 4), 4);
    assert_eq!(rents(&four, &[], 3), 0, "one of them would have none");
    let booting = rented(&one[0], true);
    assert_eq!(rents(&four, std::slice::from_ref(&booting), 4), 3, "one is on its way");
    assert_eq!(rents(&four, &[booting], 3), 0);
    assert_eq!(rents(&four[..3], &[], 4), 0, "one of them is not queued");
    let single = WaitingJob { gang: None, request: job(9).request, ..job(9) };
    let behind = [&four[..], &[single]].concat();
    assert_eq!(rents(&behind, &[], 3), 1, "who has nothing to do with it needs not wait for it");
}

#[test]
fn a_gang_shares_machines_and_pays_for_them_together() {
    let bought = |jobs: &[WaitingJob]| bought_within(jobs, &[offer("eight", 8, 8)], &Limits::default());
    assert_eq!(bought(&gang(4)), ["eight"]);
    assert!(bought(&gang(3)).is_empty(), "three of eight GPUs");
    assert_eq!(bought(&[&gang(3)[..], &[job(7), job(8)]].concat()), ["eight"], "with others");
}

#[test]
fn customers_whose_jobs_end_before_they_ran_have_no_more_machines_rented_and_are_told() {
    let limits = Limits { unused: 2, ..Limits::default() };
    let after = |in_vain| WaitingJob { in_vain, ..job(1) };
    assert_eq!(bought_within(&[after(1)], &[offer("a10", 1, 1)], &limits), ["a10"]);
    assert!(bought_within(&[after(2)], &[offer("a10", 1, 1)], &limits).is_empty());
    assert_eq!(not_rented(&[after(1)], &limits), []);
    let told = not_rented(&[after(2), WaitingJob { code: "backing_off".into(), ..after(2) }], &limits);
    let [(id, why)] = &told[..] else { panic!("one is told: {told:?}") };
    assert_eq!((*id, why.contains("2 were")), (job(1).job, true), "{why}");
    let free = [rented(&offer("a10", 1, 1), true)];
    assert_eq!(needs(&[after(2)], &free, &limits).len(), 1, "what is there may be used");
}

fn naming(model: &str) -> WaitingJob {
    asking(|request| {
        request.resources.gpu = Some(GpuRequest { models: vec![model.into()], ..GpuRequest::default() });
    })
}

#[test]
fn a_named_model_must_be_what_such_devices_call_themselves_and_not_only_the_cloud() {
    let sxm = CloudOffer { model: "H100 (80 GB SXM5)".into(), class: Some("h100-sxm"), ..offer("sxm", 3, 1) };
    let models = Models::from([("h100-sxm".to_owned(), vec!["NVIDIA H100 80GB HBM3".to_owned()])]);
    let is_bought = |job: &WaitingJob| {
        let (jobs, offers) = (std::slice::from_ref(job), std::slice::from_ref(&sxm));
        demand(jobs, offers, &models, &[], &BTreeSet::new(), &Limits::default(), NOW).len() == 1
    };
    assert!(is_bought(&naming("H100")) && is_bought(&naming("NVIDIA H100")));
    assert!(!is_bought(&naming("h100-sxm")), "no class may come of its test, and its driver does not say so");
    assert!(!is_bought(&naming("HBM3")), "the cloud does not say so");
    assert!(!is_bought(&naming("A100")));
}

#[test]
fn a_device_has_a_tenth_less_memory_than_it_is_sold_with() {
    let with = |mib: i64| {
        let vram = Bytes(mib * Bytes::MIB);
        let job =
            asking(|request| request.resources.gpu = Some(GpuRequest { vram, ..GpuRequest::default() }));
        !bought(&[job], &[offer("a10", 1, 1)]).is_empty()
    };
    assert!(with(22_118) && !with(22_119), "24 GiB");
}

fn device(number: u8, model: &str, mib: i64) -> Device {
    Device {
        uuid: format!("GPU-{number}"),
        model: model.into(),
        vram: Bytes(mib * Bytes::MIB),
        driver: "1".into(),
        simulated: false,
        division: Division::Whole,
    }
}

#[test]
fn a_host_takes_what_it_has_and_not_what_its_cloud_has_said() {
    let sold = shape(&offer("two", 2, 2), &Models::new(), 10).expect("enough is said");
    let has = Inventory {
        milli_cpu: MilliCpu(8_000),
        memory: Bytes(16 * Bytes::GIB),
        disk: Bytes(100 * Bytes::GIB),
        devices: vec![device(1, "NVIDIA A10", 23_028), device(2, "NVIDIA A10", 22_000)],
        cpu_model: String::new(),
        os: String::new(),
        kernel: String::new(),
        runtime: Runtime::Docker { version: String::new() },
        egress: Vec::new(),
        agent: String::new(),
    };
    let real = sold.clone().proven(&has, None);
    let takes = |shape: &Shape, job: &WaitingJob| {
        let models = job.request.resources.gpu.as_ref().expect("a GPU").choices();
        models.into_iter().any(|model| shape.takes(job, model))
    };
    let of = |mib: i64| {
        let vram = Bytes(mib * Bytes::MIB);
        asking(|request| request.resources.gpu = Some(GpuRequest { vram, ..GpuRequest::default() }))
    };
    assert!(takes(&real, &of(22_000)) && !takes(&real, &of(22_001)), "the least that each has, to the byte");
    let large = asking(|request| request.resources.memory = Bytes(17 * Bytes::GIB));
    assert!(takes(&sold, &large) && !takes(&real, &large));
    assert!(takes(&real, &naming("A10")) && !takes(&real, &naming("A10G")));
    let mut proven = Proven::of(&has);
    let shown = ProvenDevice {
        models: vec!["NVIDIA A10G".into()],
        ..ProvenDevice::of(&has.devices[0], Some("a10".into()))
    };
    proven.devices = Some([("GPU-1".to_owned(), shown)].into());
    assert!(takes(&sold.proven(&has, Some(&proven)), &naming("A10G")), "what it was tested to be");
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
    RentedMachine {
        row,
        host,
        has: None,
        is_busy,
        is_held: false,
        has_worked: is_busy,
        is_long_busy: is_busy,
        job_waits: false,
        paid: MicroUsd::ZERO,
    }
}

/// What is said of a machine for which jobs wait.
fn said(machine: &RentedMachine, need: Need, at: Timestamp) -> MachineDemand {
    wanted(machine, need, true, &Limits::default(), at)
}

#[test]
fn a_machine_is_wanted_while_it_boots_or_works_and_idle_otherwise() {
    use HostState as S;
    use MachineDemand::{Idle, Released, Wanted};
    let said_of = |host, is_busy| said(&machine(host, is_busy, Wanted), Need::Jobs, NOW);
    assert_eq!(said_of(None, false), Wanted, "it is asked for, and serves whoever waits then");
    let unasked = wanted(&machine(None, false, Wanted), Need::Jobs, false, &Limits::default(), NOW);
    assert_eq!(unasked, Released, "its job has a place, or is gone");
    assert_eq!(said_of(Some(S::Verifying), false), Wanted);
    assert_eq!(said_of(Some(S::Ready), true), Wanted);
    assert_eq!(said_of(Some(S::Ready), false), Idle(NOW), "whom it would do for is placed at once, or never");
    assert_eq!(said_of(Some(S::Refused), false), Released);
    assert_eq!(said_of(Some(S::Gone), false), Released);
    let since = Idle(Timestamp(NOW.0 - 5));
    assert_eq!(said(&machine(Some(S::Ready), false, since), Need::None, NOW), since);
    let late = Timestamp(NOW.0 + PROVE_MAX.0);
    assert_eq!(said(&machine(Some(S::Verifying), false, Wanted), Need::Jobs, late), Idle(late));
}

#[test]
fn a_machine_that_is_not_ready_goes_back_once_nobody_who_waits_has_a_room_on_it() {
    use MachineDemand::{Idle, Released, Wanted};
    for host in [None, Some(HostState::Enrolled), Some(HostState::Verifying)] {
        let alone = |demand, at| said(&machine(host, false, demand), Need::None, at);
        assert_eq!(alone(Wanted, NOW), Idle(NOW), "who waited may be back in a moment");
        assert_eq!(alone(Idle(NOW), Timestamp(NOW.0 + UNUSED.0 - 1)), Idle(NOW));
        assert_eq!(alone(Idle(NOW), NOW.after(UNUSED)), Released);
        let needed = said(&machine(host, false, Idle(NOW)), Need::Jobs, NOW.after(UNUSED));
        assert_eq!(needed, Wanted, "somebody else has come");
    }
    let tested_again =
        RentedMachine { has_worked: true, ..machine(Some(HostState::Verifying), false, Wanted) };
    let late = NOW.after(PROVE_MAX);
    assert_eq!(said(&tested_again, Need::None, late), Idle(late), "it is paid for until its boundary");
}

#[test]
fn rooms_are_needed_by_as_many_jobs_as_wait_and_no_more() {
    let machines = [rented(&offer("one", 1, 1), true), rented(&offer("two", 2, 2), true)];
    let ids = [machines[0].machine, machines[1].machine];
    let of = |jobs: &[WaitingJob]| needs(jobs, &machines, &Limits::default());
    assert_eq!(of(&[]), [].into());
    assert_eq!(of(&[job(1)]), [(ids[0], Need::Jobs)].into());
    assert_eq!(of(&[job(1), job(2)]), [(ids[0], Need::Jobs), (ids[1], Need::Jobs)].into());
    assert_eq!(of(&gang(2)[..1]), [(ids[0], Need::Gang)].into(), "also where others of it have none");
    let elsewhere = asking(|request| request.region = "eu".parse().ok());
    let ending = WaitingJob { code: "backing_off".into(), ..job(1) };
    assert_eq!(of(&[elsewhere, ending]), [].into());
    let fresh = WaitingJob { queued_at: NOW, ..job(1) };
    assert_eq!(of(&[fresh]).len(), 1, "whoever has waited for a moment only needs it, too");
}

#[test]
fn a_machine_that_is_ready_stays_for_a_gang_that_waits_but_not_for_ever() {
    let ready = machine(Some(HostState::Ready), false, MachineDemand::Wanted);
    let at = |span: i64| said(&ready, Need::Gang, Timestamp(NOW.0 + span));
    assert_eq!(at(GANG_MAX.0 - 1), MachineDemand::Wanted);
    assert_eq!(at(GANG_MAX.0), MachineDemand::Idle(NOW.after(GANG_MAX)));
}

#[test]
fn quotes_hold_a_machine_without_leases_as_long_as_one_may_and_not_one_after_the_other() {
    let held = |since| RentedMachine {
        is_held: true,
        ..machine(Some(HostState::Ready), false, MachineDemand::Idle(since))
    };
    let most = Limits::default().idle.0 + HOLD_MAX.0;
    assert_eq!(said(&held(NOW), Need::None, Timestamp(NOW.0 + most - 1)), MachineDemand::Idle(NOW));
    assert_eq!(said(&held(NOW), Need::None, Timestamp(NOW.0 + most)), MachineDemand::Released);
}

#[test]
fn a_machine_for_which_too_little_was_paid_of_late_is_not_kept() {
    let hour = MicroUsd(4_000_000);
    let is_kept = |paid: i64, minutes: i64, limits: &Limits| {
        let machine = RentedMachine {
            paid: MicroUsd(paid),
            ..machine(Some(HostState::Ready), true, MachineDemand::Wanted)
        };
        is_paid_for(&machine, Need::Jobs, hour, limits, Timestamp(NOW.0 + minutes * 60_000))
    };
    let usual = Limits::default();
    assert!(is_kept(1_000_000, 40, &usual), "half of what half an hour costs");
    assert!(!is_kept(999_999, 40, &usual));
    assert!(is_kept(0, 39, &usual), "it has hardly had the time");
    assert!(is_kept(0, 90, &Limits { share_percent: 0, ..usual }));
    // A second of work each 110 seconds.
    assert!(!is_kept(hour.0 / 3_600 * 17, 40, &usual));
    let booting = machine(None, false, MachineDemand::Wanted);
    assert!(is_paid_for(&booting, Need::Jobs, hour, &usual, NOW), "it boots");
    let ready = machine(Some(HostState::Ready), true, MachineDemand::Wanted);
    let after = |minutes: i64| Timestamp(ready.row.made_at.0 + minutes * 60_000);
    assert!(is_paid_for(&ready, Need::Gang, hour, &usual, after(59)), "it waits for the others of a gang");
    assert!(!is_paid_for(&ready, Need::Gang, hour, &usual, after(60)));
}

#[test]
fn losses_are_what_machines_cost_beyond_what_jobs_paid() {
    let of = |accounts: &[(i64, i64)]| {
        lost(accounts.iter().map(|(cost, charged)| (MicroUsd(*cost), MicroUsd(*charged))))
    };
    assert_eq!(of(&[]), MicroUsd::ZERO);
    assert_eq!(of(&[(5, 3), (7, 0)]), MicroUsd(9));
    assert_eq!(of(&[(5, 9), (3, 0)]), MicroUsd(-1), "what one earns makes up for another");
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
        let purchases = demand(&jobs, &offers, &Models::new(), &[], &BTreeSet::new(), &limits, NOW);
        let spent: i64 = purchases.iter().map(|purchase| purchase.price_max.0).sum();
        prop_assert!(purchases.len() <= machines as usize && spent <= limits.hourly.0);
        // What was chosen serves all that it was chosen for: looking again wants nothing more of the kind.
        let rented: Vec<Rented> = purchases.iter().map(|purchase| Rented {
            machine: Uuid::from_u128(purchase.job.0.as_u128()), job: Some(purchase.job),
            shape: Some(purchase.shape.clone()), price_max: purchase.price_max, is_free: true,
        }).collect();
        let again = demand(&jobs, &offers, &Models::new(), &rented, &BTreeSet::new(), &limits, NOW);
        prop_assert!(purchases.len() + again.len() <= machines as usize);
        let served: BTreeSet<JobId> = purchases.iter().map(|purchase| purchase.job).collect();
        prop_assert!(again.iter().all(|purchase| !served.contains(&purchase.job)));
    }
}
