//! Whose turn it is: spot yields after notice, and nobody waits for ever.

use nave_domain::{
    Bytes, LeaseId, MicroUsd, MilliCpu, MilliGpu, Millis, Timestamp,
    fraction::Fraction,
    host::Term,
    job::{Isolation, TermWish},
    rate::Size,
};
use nave_scheduler::planner::{Notice, Plan, Planner};
use nave_store::{Occupied, QueuedJob, Snapshot, SupplyHost, Yielding};
use uuid::Uuid;

use crate::supply::{NOW, customer_id, gpu_host, gpu_job, host, host_id, hosts_of, job, job_id, snapshot};

fn lease_id(number: u128) -> LeaseId {
    LeaseId(Uuid::from_u128(number))
}

/// A spot lease on a host's next GPU.
fn spot_lease(host: &mut SupplyHost, number: u128, minutes: i64) {
    spot_lease_of(host, number, minutes, |_| ());
}

fn spot_lease_of(host: &mut SupplyHost, number: u128, minutes: i64, change: impl FnOnce(&mut Occupied)) {
    let job = gpu_job(number, 1, 0);
    let mut part = Occupied {
        customer: customer_id(9),
        alone: false,
        size: job.request.resources.size(),
        disk: job.request.resources.disk,
        devices: vec![format!("GPU-{}", host.devices_used.len())],
        share: None,
        order_bytes: 0,
    };
    change(&mut part);
    host.occupy(part.clone());
    let used = Millis(minutes * 60_000);
    host.yielding.push(Yielding { lease: lease_id(number), part, used, is_ending: false });
}

fn waits(plan: &Plan) -> Vec<(nave_domain::JobId, &'static str)> {
    plan.waiting.iter().map(|(job, reason)| (*job, reason.code)).collect()
}

#[test]
fn the_spot_lease_that_has_done_least_yields_and_its_place_is_kept() {
    let mut full = gpu_host(&[80, 80]);
    full.terms.term = Term::Spot;
    spot_lease(&mut full, 101, 60);
    spot_lease(&mut full, 102, 10);
    let mut planner = Planner::default();
    let plan = planner.plan(&snapshot(vec![gpu_job(1, 1, 8)], vec![full.clone()]));
    let notice = Notice { host: host_id(1), lease: lease_id(102), for_job: job_id(1) };
    assert_eq!((plan.notices.as_slice(), plan.placements.len()), ([notice].as_slice(), 0));
    full.yielding[1].is_ending = true;
    let plan = planner.plan(&snapshot(vec![gpu_job(1, 1, 8)], vec![full.clone()]));
    assert_eq!((plan.notices.len(), waits(&plan)), (0, vec![(job_id(1), "waiting_for_capacity")]));
    full.yielding.remove(1);
    full.devices_used.remove(1);
    // Whoever is younger does not get it, even if the one it is kept for were looked at later.
    let plan = planner.plan(&snapshot(vec![gpu_job(1, 1, 8), gpu_job(2, 1, 8)], vec![full]));
    assert_eq!(plan.placements.iter().map(|placement| placement.job).collect::<Vec<_>>(), [job_id(1)]);
}

#[test]
fn spot_yields_neither_to_spot_nor_where_something_else_is_free_nor_in_vain() {
    let mut full = gpu_host(&[80]);
    full.terms.term = Term::Spot;
    spot_lease(&mut full, 101, 10);
    let notices = |job: QueuedJob, hosts| Planner::default().plan(&snapshot(vec![job], hosts)).notices.len();
    let wish = |term| {
        let mut job = gpu_job(1, 1, 8);
        job.request.term = term;
        job
    };
    assert_eq!(notices(wish(TermWish::Spot), vec![full.clone()]), 0);
    assert_eq!(notices(wish(TermWish::OnDemand), vec![full.clone()]), 0, "the host is not on demand");
    assert_eq!(notices(wish(TermWish::Any), vec![full.clone(), gpu_host(&[80])]), 0);
    assert_eq!(notices(gpu_job(1, 2, 8), vec![full.clone()]), 0, "it has one");
    let mut alone = gpu_job(1, 1, 8);
    alone.request.isolation = Isolation::Host;
    let mut shared = full.clone();
    shared.tenants.push((customer_id(8), false));
    assert_eq!(notices(alone, vec![shared]), 0, "somebody else stays");
    assert_eq!(notices(wish(TermWish::Any), vec![full]), 1);
}

#[test]
fn nobody_yields_to_a_job_that_gets_a_place_in_the_same_plan() {
    let mut full = gpu_host(&[80]);
    full.terms.term = Term::Spot;
    full.inventory.memory.0 *= 2;
    spot_lease(&mut full, 101, 10);
    // It fits to the byte, which is seen only when it is looked for by hand.
    let mut exact = gpu_host(&[80]);
    exact.inventory.memory.0 += 1;
    let mut job = gpu_job(1, 1, 8);
    job.request.resources.memory = exact.inventory.memory;
    let plan = Planner::default().plan(&snapshot(vec![job], vec![full, exact]));
    assert_eq!((hosts_of(&plan), plan.notices), (vec![2], vec![]));
}

fn notices(job: QueuedJob, host: &SupplyHost) -> Vec<LeaseId> {
    let plan = Planner::default().plan(&snapshot(vec![job], vec![host.clone()]));
    plan.notices.iter().map(|notice| notice.lease).collect()
}

/// A lease of a host that stays.
fn staying(host: &mut SupplyHost, customer: u128) {
    spot_lease_of(host, 999, 0, |part| {
        part.customer = customer_id(customer);
        (part.devices, part.size.milli_gpu) = (Vec::new(), MilliGpu(0));
    });
    host.yielding.pop();
}

#[test]
fn a_spot_job_that_has_its_host_alone_yields_like_any_other() {
    let mut full = gpu_host(&[80]);
    full.terms.term = Term::Spot;
    spot_lease_of(&mut full, 101, 10, |part| part.alone = true);
    assert_eq!(notices(gpu_job(1, 1, 8), &full), [lease_id(101)]);
    assert_eq!(notices(job(1), &full), [lease_id(101)], "to whoever needs no GPU, too");
    // A small job of its customer beside it is no protection, unless that one keeps others off itself.
    staying(&mut full, 9);
    assert_eq!(notices(gpu_job(1, 1, 8), &full), [lease_id(101)]);
    full.tenants[1].1 = true;
    assert_eq!(notices(gpu_job(1, 1, 8), &full), []);
}

#[test]
fn whoever_wants_a_host_alone_gets_it_from_spot_jobs_of_others_and_keeps_their_own_there() {
    let mut full = gpu_host(&[80, 80]);
    full.terms.term = Term::Spot;
    spot_lease(&mut full, 101, 10);
    spot_lease(&mut full, 102, 10);
    let mut alone = gpu_job(1, 1, 8);
    alone.request.isolation = Isolation::Host;
    assert_eq!(notices(alone.clone(), &full), [lease_id(101), lease_id(102)]);
    staying(&mut full, 1);
    assert_eq!(notices(alone.clone(), &full), [lease_id(101), lease_id(102)]);
    staying(&mut full, 8);
    assert_eq!(notices(alone, &full), [], "somebody else stays");
}

#[test]
fn the_shares_of_a_device_yield_together() {
    let mut full = gpu_host(&[80]);
    full.terms.term = Term::Spot;
    let share = |part: &mut Occupied| {
        let fraction = Fraction { milli: MilliGpu(250), vram: Bytes(8 * Bytes::GIB) };
        part.devices = vec!["GPU-0".into()];
        (part.share, part.size.milli_gpu) = (Some(fraction), fraction.milli);
    };
    spot_lease_of(&mut full, 101, 10, share);
    spot_lease_of(&mut full, 102, 20, share);
    assert_eq!(notices(gpu_job(1, 1, 8), &full), [lease_id(101), lease_id(102)]);
    // One of them stays, and with it the device; what else they take is to be had.
    spot_lease_of(&mut full, 103, 0, share);
    full.yielding.pop();
    assert_eq!(notices(gpu_job(1, 1, 8), &full), []);
    let mut wide = job(1);
    wide.request.resources.milli_cpu = MilliCpu(6_000);
    assert_eq!(notices(wide, &full), [lease_id(101)]);
}

#[test]
fn a_slice_that_yields_sets_no_device_free_but_cpu() {
    let mut full = gpu_host(&[80]);
    full.terms.term = Term::Spot;
    full.inventory.devices[0].division = nave_domain::fraction::Division::Slices(Vec::new());
    spot_lease_of(&mut full, 101, 10, |part| {
        (part.devices, part.size) = (vec!["MIG-0".into()], Size { milli_gpu: MilliGpu(500), ..part.size });
        part.size.milli_cpu = MilliCpu(8_000);
    });
    assert_eq!(notices(gpu_job(1, 1, 8), &full), []);
    assert_eq!(notices(job(1), &full), [lease_id(101)]);
}

/// A job that fills a host and has waited for so long.
fn wide(number: u128, waited: i64) -> QueuedJob {
    let mut wide = job(number);
    wide.request.resources.milli_cpu = MilliCpu(8_000);
    wide.left = MicroUsd(100_000_000);
    wide.queued_at = Timestamp(NOW.0 - waited);
    wide
}

#[test]
fn a_host_is_kept_for_whoever_has_waited_too_long() {
    let busy = |milli_cpu| SupplyHost { milli_cpu_used: MilliCpu(milli_cpu), ..host() };
    let mut planner = Planner::default();
    let plan = planner.plan(&snapshot(vec![wide(1, 1_000), job(2)], vec![busy(4_000)]));
    assert_eq!(plan.placements.len(), 1, "it has not waited for long");
    let late = |hosts| snapshot(vec![wide(1, 400_000), job(2)], hosts);
    let plan = planner.plan(&late(vec![busy(4_000)]));
    assert_eq!(waits(&plan), [(job_id(1), "waiting_for_capacity"), (job_id(2), "kept_for_others")]);
    assert_eq!(hosts_of(&planner.plan(&late(vec![busy(4_000), busy(6_000)]))), [2], "one suffices");
    // The host that was kept stays the one, whichever is emptier now.
    assert_eq!(hosts_of(&planner.plan(&late(vec![busy(4_000), busy(1_000)]))), [2]);
    let plan = planner.plan(&late(vec![busy(0), busy(1_000)]));
    assert_eq!(
        plan.placements.iter().map(|p| (p.job, p.host)).collect::<Vec<_>>(),
        [(job_id(1), host_id(1)), (job_id(2), host_id(2))]
    );
    let plan = planner.plan(&Snapshot { jobs: vec![job(2)], ..late(vec![busy(4_000)]) });
    assert_eq!(plan.placements.len(), 1, "nobody is left to keep it for");
}

#[test]
fn what_is_asked_for_and_learned_keeps_scarce_gpus_for_those_who_need_them() {
    let of = |model: &str, class: &str| {
        let mut host = gpu_host(&[80]);
        model.clone_into(&mut host.inventory.devices[0].model);
        host.classes = [("GPU-0".to_owned(), class.to_owned())].into();
        host
    };
    let hosts = || vec![of("H100", "h100-sxm"), of("A100", "a100-80")];
    let mut planner = Planner::default();
    assert_eq!(
        hosts_of(&planner.plan(&snapshot(vec![gpu_job(1, 1, 8)], hosts()))),
        [1],
        "the first of equals"
    );
    for look in 0..20 {
        let choosy = (0..10).map(|number| {
            let mut job = gpu_job(1_000 + look * 10 + number, 1, 8);
            job.request.resources.gpu.get_or_insert_default().models = vec!["H100".into()];
            job
        });
        planner.plan(&snapshot(choosy.collect(), hosts()));
    }
    let later = Snapshot { now: NOW.after(Millis(60_000)), ..snapshot(vec![gpu_job(9_999, 1, 8)], hosts()) };
    assert_eq!(hosts_of(&planner.plan(&later)), [2]);
}
