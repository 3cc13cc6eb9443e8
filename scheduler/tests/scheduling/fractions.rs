//! Fractions of devices: who gets which, what they pay, and who never meets on a device.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, CustomerId, HostId, LeaseId, MicroUsd, MilliCpu, MilliGpu, Millis, QuoteId,
    fraction::{Division, Fraction, Shared, Slice},
    host::Term,
    job::Isolation,
};
use nave_scheduler::planner::{Planner, plan};
use nave_store::{AskedQuote, Occupied, Placement, QueuedJob, QuoteAnswer, Snapshot, SupplyHost, Yielding};
use proptest::prelude::*;

use crate::supply::{NOW, customer_id, gpu_host, gpu_job, host_id, job_id, snapshot};

/// A host whose GPUs of these sizes in GiB can be shared.
fn sharing_host(sizes: &[i64]) -> SupplyHost {
    let mut host = gpu_host(sizes);
    host.inventory.devices.iter_mut().for_each(|device| device.division = Division::Shares);
    host
}

/// A host with one GPU of 80 GiB in slices of these thousandths and GiB.
fn cut_host(slices: &[(i64, i64)]) -> SupplyHost {
    let mut host = gpu_host(&[80]);
    let slice = |(number, (milli, gib)): (usize, &(i64, i64))| Slice {
        uuid: format!("MIG-{number}"),
        profile: format!("{gib}gb"),
        milli: MilliGpu(*milli),
        vram: Bytes(gib * Bytes::GIB),
    };
    host.inventory.devices[0].division = Division::Slices(slices.iter().enumerate().map(slice).collect());
    host
}

/// A job of a customer for so much of one GPU.
fn share_job(number: u128, customer: u128, milli: u16, gib: i64) -> QueuedJob {
    let mut job = gpu_job(number, 1, gib);
    job.customer = customer_id(customer);
    job.request.resources.gpu.as_mut().expect("a GPU").share = Some(milli);
    job.request.resources.milli_cpu.0 = 10;
    job
}

fn placed(jobs: Vec<QueuedJob>, hosts: Vec<SupplyHost>) -> Vec<Placement> {
    plan(&snapshot(jobs, hosts)).placements
}

fn devices(placements: &[Placement]) -> Vec<&str> {
    placements.iter().map(|placement| placement.devices[0].as_str()).collect()
}

#[test]
fn a_job_with_a_share_pays_for_the_larger_of_its_computing_and_its_memory() {
    let of = |milli, gib| {
        let placements = placed(vec![share_job(1, 1, milli, gib)], vec![sharing_host(&[80])]);
        (placements[0].share, placements[0].size.milli_gpu)
    };
    let share = |milli, gib| Some(Fraction { milli: MilliGpu(milli), vram: Bytes(gib * Bytes::GIB) });
    assert_eq!(of(250, 8), (share(250, 8), MilliGpu(250)));
    assert_eq!(of(50, 8), (share(50, 8), MilliGpu(100)));
}

#[test]
fn shares_of_one_customer_are_beside_one_another_and_strangers_are_not() {
    let jobs = vec![
        share_job(1, 1, 250, 8),
        share_job(2, 2, 250, 8),
        share_job(3, 1, 250, 8),
        share_job(4, 2, 250, 8),
    ];
    let placements = placed(jobs, vec![sharing_host(&[80, 80, 80])]);
    assert_eq!(devices(&placements), ["GPU-0", "GPU-1", "GPU-0", "GPU-1"]);
    assert_eq!(placed(vec![share_job(5, 3, 250, 8)], vec![sharing_host(&[])]), []);
}

#[test]
fn a_stranger_waits_rather_than_share() {
    let plan =
        plan(&snapshot(vec![share_job(1, 1, 250, 8), share_job(2, 2, 250, 8)], vec![sharing_host(&[80])]));
    assert_eq!(plan.placements.len(), 1);
    assert_eq!(plan.waiting[0].1.code, "waiting_for_capacity");
}

#[test]
fn shares_of_two_sizes_are_on_two_devices() {
    let jobs = vec![share_job(1, 1, 250, 8), share_job(2, 1, 250, 16)];
    assert_eq!(devices(&placed(jobs, vec![sharing_host(&[80, 80])])), ["GPU-0", "GPU-1"]);
}

#[test]
fn a_job_that_wants_a_device_for_itself_gets_all_of_it_and_pays_for_it() {
    for isolation in [Isolation::Device, Isolation::Host] {
        let mut job = share_job(1, 1, 250, 8);
        job.request.isolation = isolation;
        let placements = placed(vec![job], vec![sharing_host(&[80])]);
        assert_eq!((placements[0].share, placements[0].size.milli_gpu), (None, MilliGpu(1_000)));
    }
}

#[test]
fn where_nobody_leases_fractions_a_job_that_one_suffices_for_gets_a_device() {
    let placements = placed(vec![share_job(1, 1, 250, 8)], vec![gpu_host(&[80])]);
    assert_eq!((placements[0].share, placements[0].size.milli_gpu), (None, MilliGpu(1_000)));
}

#[test]
fn nobody_gets_a_device_whole_of_which_there_are_shares() {
    let mut host = sharing_host(&[80]);
    let fraction = Fraction { milli: MilliGpu(250), vram: Bytes(8 * Bytes::GIB) };
    let taken = Shared { tenant: customer_id(1), fraction, count: 1 };
    host.shared = BTreeMap::from([("GPU-0".to_owned(), taken)]);
    assert_eq!(placed(vec![gpu_job(1, 1, 8)], vec![host.clone()]), []);
    assert_eq!(devices(&placed(vec![share_job(2, 1, 250, 8)], vec![host.clone()])), ["GPU-0"]);
    host.shared.clear();
    let both = placed(vec![share_job(3, 1, 250, 8), gpu_job(4, 1, 8)], vec![host]);
    assert_eq!(both.len(), 1, "in one plan neither");
}

#[test]
fn nobody_gets_more_of_a_shared_device_that_is_held_for_a_test() {
    let mut host = sharing_host(&[80]);
    let fraction = Fraction { milli: MilliGpu(250), vram: Bytes(8 * Bytes::GIB) };
    let taken = Shared { tenant: customer_id(1), fraction, count: 1 };
    host.shared = BTreeMap::from([("GPU-0".to_owned(), taken)]);
    host.devices_used = vec!["GPU-0".to_owned()];
    let plan = plan(&snapshot(vec![share_job(1, 1, 250, 8), gpu_job(2, 1, 8)], vec![host]));
    assert_eq!((plan.placements, plan.notices), (vec![], vec![]));
}

#[test]
fn whoever_has_waited_for_longest_gets_the_fraction_however_young_its_id() {
    let mut tired = share_job(2, 2, 250, 8);
    tired.queued = Millis(600_000);
    let placements = placed(vec![share_job(1, 1, 250, 8), tired], vec![sharing_host(&[80])]);
    assert_eq!(placements.iter().map(|placement| placement.job).collect::<Vec<_>>(), [job_id(2)]);
}

#[test]
fn a_host_is_kept_for_a_job_with_a_share_that_has_waited_too_long() {
    let mut tired = share_job(1, 1, 250, 8);
    tired.queued = Millis(600_000);
    let busy = |used: &[&str]| SupplyHost {
        devices_used: used.iter().map(|uuid| (*uuid).to_owned()).collect(),
        ..sharing_host(&[80, 80])
    };
    let mut planner = Planner::default();
    let jobs = || vec![tired.clone(), gpu_job(2, 1, 8)];
    planner.plan(&snapshot(jobs(), vec![busy(&["GPU-0", "GPU-1"])]));
    let plan = planner.plan(&snapshot(jobs(), vec![busy(&["GPU-1"])]));
    assert_eq!(plan.placements.iter().map(|placement| placement.job).collect::<Vec<_>>(), [job_id(1)]);
    assert!(plan.placements[0].share.is_some(), "it does not take all of it then");
}

#[test]
fn spot_yields_to_a_job_that_accepts_a_fraction_as_to_any_other() {
    let mut full = sharing_host(&[80]);
    full.terms.term = Term::Spot;
    let spot = gpu_job(101, 1, 0);
    let part = Occupied {
        customer: customer_id(9),
        alone: false,
        size: spot.request.resources.size(),
        disk: spot.request.resources.disk,
        devices: vec!["GPU-0".to_owned()],
        share: None,
        order_bytes: 0,
    };
    full.occupy(part.clone());
    let lease = LeaseId(uuid::Uuid::from_u128(101));
    full.yielding.push(Yielding { lease, part, used: Millis::ZERO, is_ending: false });
    let plan = plan(&snapshot(vec![share_job(1, 1, 250, 8)], vec![full]));
    assert_eq!(plan.notices.iter().map(|notice| notice.for_job).collect::<Vec<_>>(), [job_id(1)]);
}

#[test]
fn strangers_get_slices_of_one_device_the_smallest_that_suffices() {
    let host = cut_host(&[(428, 40), (142, 10), (142, 10)]);
    let jobs = vec![
        share_job(1, 1, 100, 8),
        share_job(2, 2, 100, 8),
        share_job(3, 3, 100, 8),
        share_job(4, 4, 100, 8),
    ];
    let placements = placed(jobs, vec![host.clone()]);
    assert_eq!(devices(&placements), ["MIG-1", "MIG-2", "MIG-0"]);
    let paid: Vec<_> =
        placements.iter().map(|placement| (placement.share, placement.size.milli_gpu.0)).collect();
    assert_eq!(paid, [(None, 142), (None, 142), (None, 500)], "for all of the slice");
    assert_eq!(placed(vec![gpu_job(5, 1, 8)], vec![host]), [], "nobody gets it whole");
}

#[test]
fn a_price_that_pays_for_the_fraction_is_enough() {
    let mut job = share_job(1, 1, 250, 8);
    job.request.max_price = Some(MicroUsd(1_000_000));
    job.left = MicroUsd(900);
    assert_eq!(
        placed(vec![job.clone()], vec![sharing_host(&[80])]).len(),
        1,
        "0.75 dollars an hour, and a little for cores"
    );
    job.request.max_price = Some(MicroUsd(700_000));
    assert_eq!(placed(vec![job], vec![sharing_host(&[80])]), []);
}

/// Somebody who asks for a quote for what this job wants.
fn asked(number: u128, of: &QueuedJob, is_held: bool) -> AskedQuote {
    let quote = QuoteId(uuid::Uuid::from_u128(number));
    AskedQuote { quote, customer: of.customer, request: of.request.clone(), asked_at: NOW, is_held }
}

fn quoted(quotes: Vec<AskedQuote>, hosts: Vec<SupplyHost>) -> Vec<Option<Placement>> {
    let plan = plan(&Snapshot { quotes, ..snapshot(vec![], hosts) });
    let place = |answer| match answer {
        QuoteAnswer::Place(place) => Some(*place),
        QuoteAnswer::None(..) => None,
    };
    plan.quotes.into_iter().map(|quoted| place(quoted.answer)).collect()
}

#[test]
fn a_quote_is_for_a_fraction_where_a_job_would_get_one_and_it_holds_no_more() {
    let (ada, eve) = (share_job(1, 1, 500, 8), share_job(2, 2, 500, 8));
    let two = |first: &QueuedJob, second: &QueuedJob| {
        let places = quoted(vec![asked(11, first, true), asked(12, second, true)], vec![sharing_host(&[80])]);
        let got =
            |place: Placement| (place.devices[0].clone(), place.size.milli_gpu.0, place.share.is_some());
        places.into_iter().map(|place| place.map(got)).collect::<Vec<_>>()
    };
    let share = Some(("GPU-0".to_owned(), 500, true));
    assert_eq!(two(&ada, &ada), [share.clone(), share.clone()]);
    assert_eq!(two(&ada, &eve), [share.clone(), None], "strangers do not meet");
    assert_eq!(two(&ada, &gpu_job(3, 1, 8)), [share, None], "nobody gets all of it then");
    let whole = share_job(3, 1, 600, 8);
    assert_eq!(two(&whole, &whole)[1], None, "two of these are more than a device");
    let job = placed(vec![whole.clone()], vec![sharing_host(&[80])]);
    let quote = quoted(vec![asked(11, &whole, true)], vec![sharing_host(&[80])]);
    let as_a_job =
        |place: &Placement| (place.devices.clone(), place.share, place.size, place.rate, place.run_max);
    assert_eq!(quote[0].as_ref().map(as_a_job), job.first().map(as_a_job));
}

#[test]
fn a_quote_that_is_only_looked_at_holds_no_fraction() {
    let wish = share_job(1, 1, 1_000 / 2, 8);
    let looks: Vec<_> = (11..15).map(|number| asked(number, &wish, false)).collect();
    assert!(quoted(looks, vec![cut_host(&[(500, 40)])]).iter().all(Option::is_some));
    let held: Vec<_> = (11..13).map(|number| asked(number, &wish, true)).collect();
    let places = quoted(held, vec![cut_host(&[(500, 40)])]);
    assert_eq!(places.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false], "a slice is held once");
}

#[test]
fn a_quote_says_what_the_fraction_would_cost_elsewhere() {
    let wish = share_job(1, 1, 250, 8);
    let mut dear = sharing_host(&[80]);
    dear.rate.gpu_hour.0 *= 2;
    let busy = SupplyHost { devices_used: vec!["GPU-0".into()], ..sharing_host(&[80]) };
    let hosts = vec![sharing_host(&[80]), dear, busy, gpu_host(&[80])];
    let plan = plan(&Snapshot { quotes: vec![asked(11, &wish, true)], ..snapshot(vec![], hosts) });
    let cores = 10_000 + 5_000;
    let others: Vec<_> = plan.quotes[0]
        .considered
        .iter()
        .map(|other| (other.host, other.hourly.0 - cores, other.code.as_str()))
        .collect();
    assert_eq!(
        others,
        [
            (host_id(2), 1_500_000, "not_better"),
            (host_id(4), 3_000_000, "not_better"),
            (host_id(3), 750_000, "busy")
        ]
    );
}

#[test]
fn members_of_a_gang_share_a_device_or_all_of_them_wait() {
    let gang = || -> Vec<QueuedJob> {
        let member = |number| {
            let mut job = share_job(number, 1, 250, 8);
            job.gang = Some(job_id(1));
            (job.request.group, job.request.gang) = (Some("g".into()), Some(4));
            job
        };
        (1..5).map(member).collect()
    };
    let placements = placed(gang(), vec![sharing_host(&[80])]);
    assert_eq!(devices(&placements), ["GPU-0"; 4]);
    assert!(placements.iter().all(|placement| placement.gang == Some(job_id(1))));
    let mut larger = gang();
    larger.iter_mut().for_each(|job| job.request.resources.gpu.as_mut().expect("a GPU").share = Some(300));
    assert_eq!(placed(larger, vec![sharing_host(&[80])]), []);
}

#[test]
fn a_slice_is_given_rather_than_a_device_and_its_cores_to_whoever_has_waited_for_longer() {
    let hosts = || vec![gpu_host(&[80]), cut_host(&[(250, 20)])];
    assert_eq!(devices(&placed(vec![share_job(1, 1, 250, 8)], hosts())), ["MIG-0"]);
    let mut older = crate::supply::job(2);
    older.request.resources.milli_cpu.0 = 8_000;
    older.queued = Millis(1_000);
    let placements = placed(vec![share_job(1, 1, 250, 8), older], vec![cut_host(&[(250, 20)])]);
    assert_eq!(placements.iter().map(|placement| placement.job).collect::<Vec<_>>(), [job_id(2)]);
}

#[test]
fn a_share_that_is_too_dear_on_one_host_is_had_on_another() {
    let mut dear = sharing_host(&[80]);
    dear.rate.gpu_hour.0 *= 1_000;
    let mut job = share_job(1, 1, 250, 8);
    (job.left, job.request.limits.run_ms) = (MicroUsd(900), Millis(3_600_000));
    let beside = Shared {
        tenant: customer_id(1),
        fraction: Fraction { milli: MilliGpu(250), vram: Bytes(8 * Bytes::GIB) },
        count: 1,
    };
    dear.shared = BTreeMap::from([("GPU-0".to_owned(), beside)]);
    let placements = placed(vec![job], vec![dear, sharing_host(&[80])]);
    assert_eq!(placements.iter().map(|placement| placement.host).collect::<Vec<_>>(), [host_id(2)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_young_job_shares_a_device_that_an_older_one_waits_for(
        wishes in proptest::collection::vec((1..4_u128, 50..1_000_u16, 1..60_i64, any::<bool>(), 0..200_000_i64), 1..16),
        counts in proptest::collection::vec(1..4_usize, 1..3),
    ) {
        let jobs: Vec<QueuedJob> = (1..).zip(&wishes).map(|(number, (customer, milli, gib, whole, queued))| {
            let mut job = share_job(number, *customer, *milli, *gib);
            if *whole { job.request.resources.gpu.as_mut().expect("a GPU").share = None; }
            job.queued = Millis(*queued);
            job
        }).collect();
        let since = |id| jobs.iter().find(|job| job.job == id).map(|job| (-job.queued.0, job.job)).expect("a job");
        let hosts = || counts.iter().map(|count| sharing_host(&vec![80; *count])).collect();
        let plan = plan(&snapshot(jobs.clone(), hosts()));
        let mut first: BTreeMap<(HostId, &str), _> = BTreeMap::new();
        for placement in plan.placements.iter().filter(|placement| placement.share.is_some()) {
            let oldest = first.entry((placement.host, &*placement.devices[0])).or_insert(since(placement.job));
            *oldest = since(placement.job).min(*oldest);
        }
        let waits = |job: &&QueuedJob| plan.waiting.iter().any(|(id, _)| *id == job.job);
        for job in jobs.iter().filter(waits).filter(|job| job.request.resources.gpu.as_ref().expect("a GPU").share.is_none()) {
            prop_assert!(first.values().all(|first| *first < since(job.job)), "{:?} waits", job.job);
        }
        prop_assert_eq!(placed(jobs.clone(), hosts()), plan.placements);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_device_is_oversold_and_no_two_customers_meet_on_one(
        wishes in proptest::collection::vec((1..4_u128, 50..1_000_u16, 1..60_i64, any::<bool>()), 1..24),
        sizes in proptest::collection::vec(prop_oneof![Just(24_i64), Just(80)], 1..4),
    ) {
        let jobs: Vec<QueuedJob> = (1..).zip(&wishes).map(|(number, (customer, milli, gib, whole))| {
            let mut job = share_job(number, *customer, *milli, *gib);
            if *whole { job.request.resources.gpu.as_mut().expect("a GPU").share = None; }
            job
        }).collect();
        let owner: BTreeMap<_, CustomerId> = jobs.iter().map(|job| (job.job, job.customer)).collect();
        let hosts = vec![sharing_host(&sizes), cut_host(&[(428, 40), (428, 40)])];
        let total = |host: HostId, uuid: &str| hosts.iter().zip(1..).find(|(_, id)| host_id(*id) == host)
            .and_then(|(host, _)| host.inventory.devices.iter().find(|device| device.uuid == uuid)).map(|device| device.vram);
        let mut on: BTreeMap<(HostId, String), Vec<Placement>> = BTreeMap::new();
        for placement in placed(jobs, hosts.clone()) {
            on.entry((placement.host, placement.devices[0].clone())).or_default().push(placement);
        }
        for ((host, uuid), placements) in on {
            let first = owner[&placements[0].job];
            if placements.len() == 1 { continue; }
            prop_assert!(placements.iter().all(|placement| placement.share.is_some() && owner[&placement.job] == first));
            let (milli, vram) = placements.iter().filter_map(|placement| placement.share)
                .fold((0, 0), |(milli, vram), share| (milli + share.milli.0, vram + share.vram.0));
            prop_assert!(milli <= 1_000 && vram <= total(host, &uuid).expect("a device").0);
        }
    }
}

#[test]
fn a_fraction_costs_no_more_than_its_part_of_what_clouds_ask_unless_its_customer_says_so() {
    let mut host = sharing_host(&[80]);
    host.classes = [("GPU-0".to_owned(), "h100-sxm".to_owned())].into();
    let with = |clouds, vcpu_hour, job: &QueuedJob| {
        let baselines = [(("h100-sxm".to_owned(), None), MicroUsd(clouds))].into_iter().collect();
        let mut host = host.clone();
        host.rate.vcpu_hour = MicroUsd(vcpu_hour);
        plan(&Snapshot { baselines, ..snapshot(vec![job.clone()], vec![host]) }).placements
    };
    let mut job = share_job(1, 1, 250, 8);
    job.request.resources.milli_cpu = MilliCpu(1_000);
    assert!(
        with(3_000_000, 1_000_000, &job)[0].share.is_some(),
        "with a core it costs less than a whole one"
    );
    assert_eq!(with(2_999_999, 0, &job), []);
    assert_eq!(with(3_000_000, 3_000_000, &job), [], "a whole one with its cores costs less in a cloud");
    job.request.max_price = Some(MicroUsd(900_000));
    assert!(with(1, 0, &job)[0].share.is_some());
}

#[test]
fn jobs_without_gpus_keep_off_hosts_that_are_cut_into_slices() {
    let placements = placed(vec![crate::supply::job(1)], vec![cut_host(&[(250, 20)]), crate::supply::host()]);
    assert_eq!(placements[0].host, host_id(2));
}

#[test]
fn a_slice_of_a_later_model_is_not_given_where_a_share_of_an_earlier_one_is_free() {
    let mut sharing = sharing_host(&[80]);
    sharing.inventory.devices[0].model = "NVIDIA H100".into();
    let mut cut = cut_host(&[(250, 20)]);
    cut.inventory.devices[0].model = "NVIDIA A100".into();
    let mut job = share_job(1, 1, 250, 8);
    let models = |names: [&str; 2]| names.map(str::to_owned).to_vec();
    job.request.resources.gpu.as_mut().expect("a GPU").models = models(["H100", "A100"]);
    assert_eq!(devices(&placed(vec![job.clone()], vec![cut.clone(), sharing.clone()])), ["GPU-0"]);
    job.request.resources.gpu.as_mut().expect("a GPU").models = models(["A100", "H100"]);
    assert_eq!(devices(&placed(vec![job], vec![cut, sharing])), ["MIG-0"]);
}

#[test]
fn a_slice_on_a_host_where_it_failed_is_no_better_than_a_share_elsewhere() {
    let mut job = share_job(1, 1, 250, 8);
    job.failed_on = vec![host_id(1)];
    job.queued_at.0 -= 60_000;
    assert_eq!(devices(&placed(vec![job], vec![cut_host(&[(250, 20)]), sharing_host(&[80])])), ["GPU-0"]);
}

#[test]
fn a_gang_that_is_too_large_for_all_hosts_is_told_so() {
    let member = |number| {
        let mut job = share_job(number, 1, 300, 8);
        job.gang = Some(job_id(1));
        (job.request.group, job.request.gang) = (Some("g".into()), Some(4));
        job
    };
    let gang = || (1..5).map(member).collect::<Vec<_>>();
    let told = |hosts| plan(&snapshot(gang(), hosts)).waiting[0].1.message.clone();
    let message = told(vec![sharing_host(&[80])]);
    assert!(
        message.ends_with("have no room for it beside the others of its gang, even when they are empty"),
        "{message}"
    );
    let message = told(vec![sharing_host(&[80; 17])]);
    assert!(message.ends_with("those with more than 16 GPUs take no gangs"), "{message}");
}
