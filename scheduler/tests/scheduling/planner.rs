//! The planner's policy, one rule a test.

use nave_domain::{
    Bytes, MicroUsd, MilliCpu, Millis, Timestamp,
    host::Runtime,
    job::{Egress, GROUP_LEASES_MAX},
    rate::Rate,
};
use nave_scheduler::planner::{Plan, Reason};
use nave_store::{ORDER_BYTES_MAX, ORDERS_BYTES_MAX, Past, QueuedJob, SupplyHost};
use uuid::Uuid;

use crate::supply::{
    NOW, RATE, customer_id, gpu_host, gpu_job, host, host_id, hosts_of, job, job_id, plan_for,
};

fn only_reason(reasons: &[(nave_domain::JobId, Reason)]) -> (&'static str, &str) {
    let [(_, reason)] = reasons else { panic!("one reason: {reasons:?}") };
    (reason.code, reason.message.as_str())
}

fn waits_for(plan: &Plan) -> (&'static str, &str) {
    assert!(plan.placements.is_empty() && plan.failed.is_empty(), "{plan:?}");
    only_reason(&plan.waiting)
}

fn fails_with(plan: &Plan) -> (&'static str, &str) {
    assert!(plan.placements.is_empty() && plan.waiting.is_empty(), "{plan:?}");
    only_reason(&plan.failed)
}

#[test]
fn a_job_goes_to_a_host_with_all_that_a_lease_needs() {
    let plan = plan_for(vec![job(1)], vec![host()]);
    let [placement] = plan.placements.as_slice() else { panic!("one placement: {plan:?}") };
    let wanted = job(1).request;
    assert_eq!((placement.job, placement.host), (job_id(1), host_id(1)));
    assert_eq!((placement.generation, placement.rate), (5, RATE));
    assert_eq!((placement.size, placement.disk), (wanted.resources.size(), wanted.resources.disk));
    assert_eq!(placement.devices, Vec::<String>::new());
}

#[test]
fn the_oldest_job_goes_first_when_there_is_room_for_one() {
    let mut small = host();
    small.inventory.milli_cpu = MilliCpu(1_500);
    let plan = plan_for(vec![job(1), job(2)], vec![small]);
    assert_eq!(plan.placements[0].job, job_id(1));
    assert_eq!(plan.waiting[0].0, job_id(2));
    assert_eq!(plan.waiting[0].1.code, "waiting_for_capacity");
}

#[test]
fn no_job_goes_where_it_could_not_run_to_its_end() {
    let longest = job(1).request.limits.longest();
    let lasting = |lasts: Millis| plan_for(vec![job(1)], vec![SupplyHost { lasts: Some(lasts), ..host() }]);
    assert_eq!(lasting(longest).placements.len(), 1);
    let plan = lasting(Millis(longest.0 - 1));
    assert_eq!(
        waits_for(&plan),
        ("no_host_fits", "no host has enough time until it ends; see `nave offers`")
    );
}

#[test]
fn a_large_job_that_waits_does_not_keep_a_small_one_from_starting() {
    let mut large = job(1);
    large.request.resources.milli_cpu = MilliCpu(64_000);
    let plan = plan_for(vec![large, job(2)], vec![host()]);
    assert_eq!(plan.placements[0].job, job_id(2));
}

#[test]
fn later_placements_count_on_the_generations_of_earlier_ones() {
    let plan = plan_for(vec![job(1), job(2), job(3)], vec![host()]);
    let generations: Vec<u64> = plan.placements.iter().map(|placement| placement.generation).collect();
    assert_eq!(generations, [5, 6, 7]);
}

#[test]
fn the_cheapest_host_wins() {
    let mut dear = host();
    dear.rate.vcpu_hour = MicroUsd(1_000_001);
    assert_eq!(hosts_of(&plan_for(vec![job(1)], vec![dear, host()])), [2]);
}

#[test]
fn the_price_that_counts_is_that_of_the_whole_request() {
    let cheap_cpu = Rate { vcpu_hour: MicroUsd(1), gib_hour: MicroUsd(5_000_000), ..RATE };
    let mut hosts = vec![host(), host()];
    hosts[0].rate = cheap_cpu;
    let mut hungry = job(1);
    hungry.request.resources.memory = Bytes(16 * Bytes::GIB);
    assert_eq!(hosts_of(&plan_for(vec![hungry], hosts)), [2]);
}

#[test]
fn a_job_without_gpus_keeps_off_hosts_with_gpus_as_far_as_that_costs_less_than_they_are_worth() {
    assert_eq!(hosts_of(&plan_for(vec![job(1)], vec![gpu_host(&[80]), host()])), [2]);
    let mut dear = host();
    dear.rate.vcpu_hour = MicroUsd(RATE.vcpu_hour.0 * 5 / 4);
    let mut wide = job(1);
    wide.request.resources.milli_cpu = MilliCpu(5_000);
    // The GPU would be left with too little CPU for whoever wants it.
    assert_eq!(hosts_of(&plan_for(vec![wide.clone()], vec![gpu_host(&[80]), dear.clone()])), [2]);
    dear.rate.vcpu_hour = MicroUsd(RATE.vcpu_hour.0 * 3);
    assert_eq!(hosts_of(&plan_for(vec![wide], vec![gpu_host(&[80]), dear])), [1]);
    assert_eq!(hosts_of(&plan_for(vec![job(1)], vec![gpu_host(&[80])])), [1]);
}

#[test]
fn among_equals_the_fuller_host_is_filled_and_then_the_first() {
    let mut fuller = host();
    fuller.milli_cpu_used = MilliCpu(4_000);
    assert_eq!(hosts_of(&plan_for(vec![job(1)], vec![host(), fuller])), [2]);
    assert_eq!(hosts_of(&plan_for(vec![job(1)], vec![host(), host()])), [1]);
}

#[test]
fn gpus_are_leased_whole_the_smallest_that_suffice() {
    let plan = plan_for(vec![gpu_job(1, 2, 20)], vec![gpu_host(&[80, 16, 40, 24])]);
    assert_eq!(plan.placements[0].devices, ["GPU-3", "GPU-2"]);
    assert_eq!(plan.placements[0].size.milli_gpu.0, 2_000);
}

#[test]
fn a_simulated_device_is_given_to_jobs_that_are_acted_out_only() {
    let mut host = gpu_host(&[80, 80]);
    host.inventory.devices[1].simulated = true;
    let plan = plan_for(vec![gpu_job(1, 2, 80)], vec![host.clone()]);
    assert_eq!(plan.placements[0].devices, ["GPU-0", "GPU-1"]);
    host.inventory.runtime = Runtime::Docker { version: "28".into() };
    let plan = plan_for(vec![gpu_job(1, 2, 80)], vec![host.clone()]);
    assert_eq!((plan.placements.len(), only_reason(&plan.waiting).0), (0, "no_host_fits"));
    host.inventory.devices.remove(0);
    let mut dear = host.clone();
    dear.rate.vcpu_hour = MicroUsd(dear.rate.vcpu_hour.0 * 2);
    dear.inventory.devices.clear();
    assert_eq!(hosts_of(&plan_for(vec![job(1)], vec![host, dear])), [1], "it has no GPU to keep free");
}

#[test]
fn a_device_is_never_given_twice() {
    let mut host = gpu_host(&[80, 80, 80]);
    host.devices_used = vec!["GPU-1".into()];
    let plan = plan_for(vec![gpu_job(1, 1, 80), gpu_job(2, 1, 80), gpu_job(3, 1, 80)], vec![host]);
    let given: Vec<_> = plan.placements.iter().flat_map(|placement| &placement.devices).collect();
    assert_eq!(given, ["GPU-0", "GPU-2"]);
    assert_eq!(only_reason(&plan.waiting).0, "waiting_for_capacity");
}

#[test]
fn a_host_that_failed_a_job_is_avoided_while_another_fits() {
    let mut unlucky = job(1);
    unlucky.failed_on = vec![host_id(1)];
    unlucky.queued_at = Timestamp(NOW.0 - 10_000);
    let mut dear = host();
    dear.rate.vcpu_hour = MicroUsd(9_000_000);
    assert_eq!(hosts_of(&plan_for(vec![unlucky.clone()], vec![host(), dear])), [2]);
    assert_eq!(hosts_of(&plan_for(vec![unlucky], vec![host()])), [1], "better there than nowhere");
}

#[test]
fn of_hosts_that_failed_a_job_the_one_that_failed_it_less_often_is_tried() {
    let mut unlucky = job(1);
    unlucky.failed_on = vec![host_id(1), host_id(2), host_id(1)];
    unlucky.queued_at = Timestamp(NOW.0 - 60_000);
    assert_eq!(hosts_of(&plan_for(vec![unlucky], vec![host(), host()])), [2]);
}

#[test]
fn a_job_that_hosts_failed_backs_off_longer_each_time() {
    for (failures, pause) in [(1, 1_000), (2, 2_000), (3, 4_000)] {
        let mut unlucky = job(1);
        unlucky.failed_on = vec![host_id(9); failures];
        unlucky.queued_at = Timestamp(NOW.0 - pause + 1);
        assert_eq!(waits_for(&plan_for(vec![unlucky.clone()], vec![host()])).0, "backing_off");
        unlucky.queued_at = Timestamp(NOW.0 - pause);
        assert_eq!(plan_for(vec![unlucky], vec![host()]).placements.len(), 1, "after {failures}");
    }
}

#[test]
fn a_job_that_waited_longer_than_its_queue_limit_fails_and_earlier_waits_count() {
    let mut patient = job(1);
    patient.request.limits.queue_ms = Millis(5_000);
    patient.queued = Millis(4_000);
    patient.queued_at = Timestamp(NOW.0 - 1_000);
    assert_eq!(plan_for(vec![patient.clone()], vec![host()]).placements.len(), 1, "to the last moment");
    patient.queued = Millis(4_001);
    let plan = plan_for(vec![patient], vec![host()]);
    let (code, message) = fails_with(&plan);
    assert_eq!(code, "queue_timeout");
    assert!(message.contains("5.000 s"), "{message}");
}

#[test]
fn the_run_is_bounded_by_its_limit_or_by_what_the_spend_cap_pays_for() {
    let mut job = job(1);
    job.request.resources.memory = Bytes(Bytes::GIB);
    job.request.limits.run_ms = Millis(3_600_000);
    job.left = MicroUsd(1_010_000);
    let plan = plan_for(vec![job.clone()], vec![host()]);
    assert_eq!((plan.placements[0].run_max, plan.placements[0].capped_by_spend), (Millis(3_600_000), false));
    job.left = MicroUsd(505_000);
    let plan = plan_for(vec![job], vec![host()]);
    assert_eq!((plan.placements[0].run_max, plan.placements[0].capped_by_spend), (Millis(1_800_000), true));
}

#[test]
fn a_spend_cap_that_pays_for_less_than_a_second_fails_the_job() {
    let mut poor = job(1);
    poor.left = MicroUsd(200);
    let plan = plan_for(vec![poor], vec![host()]);
    let (code, message) = fails_with(&plan);
    assert_eq!(code, "spend_cap");
    assert!(message.contains("$0.000200") && message.contains("max_spend"), "{message}");
}

#[test]
fn a_run_limit_below_a_second_is_no_reason_to_fail() {
    let mut brief = job(1);
    brief.request.limits.run_ms = Millis(500);
    brief.left = MicroUsd(200);
    let plan = plan_for(vec![brief], vec![host()]);
    assert_eq!((plan.placements[0].run_max, plan.placements[0].capped_by_spend), (Millis(500), false));
}

#[test]
fn a_host_that_costs_nothing_takes_a_job_that_can_spend_nothing() {
    let mut free = host();
    free.rate = Rate::default();
    let mut poor = job(1);
    poor.left = MicroUsd::ZERO;
    assert_eq!(hosts_of(&plan_for(vec![poor], vec![host(), free])), [2]);
}

#[test]
fn a_job_waits_for_the_host_it_can_pay_rather_than_fail_on_a_dear_one() {
    let mut poor = job(1);
    poor.left = MicroUsd(300);
    let [mut busy, mut dear] = [host(), host()];
    busy.milli_cpu_used = MilliCpu(8_000);
    dear.rate.vcpu_hour = MicroUsd(100_000_000);
    assert_eq!(waits_for(&plan_for(vec![poor.clone()], vec![busy, dear.clone()])).0, "waiting_for_capacity");
    poor.failed_on = vec![host_id(1)];
    poor.queued_at = Timestamp(NOW.0 - 10_000);
    assert_eq!(hosts_of(&plan_for(vec![poor], vec![host(), dear])), [1], "rather again than not at all");
}

#[test]
fn a_waiting_job_is_told_that_there_are_no_hosts() {
    assert_eq!(waits_for(&plan_for(vec![job(1)], vec![])).0, "no_hosts");
}

#[test]
fn a_waiting_job_is_told_what_no_host_has() {
    let lacking = |change: fn(&mut nave_store::QueuedJob), hosts| {
        let mut job = job(1);
        change(&mut job);
        let plan = plan_for(vec![job], hosts);
        let (code, message) = waits_for(&plan);
        assert_eq!(code, "no_host_fits");
        message.to_owned()
    };
    let cpu = lacking(|job| job.request.resources.milli_cpu = MilliCpu(9_000), vec![host()]);
    assert_eq!(cpu, "no host has enough CPU; see `nave offers`");
    let memory = lacking(|job| job.request.resources.memory = Bytes(33 * Bytes::GIB), vec![host()]);
    assert!(memory.contains("no host has enough memory"), "{memory}");
    let disk = lacking(|job| job.request.resources.disk = Bytes(101 * Bytes::GIB), vec![host()]);
    assert!(disk.contains("no host has enough disk"), "{disk}");
    let mut closed = host();
    closed.inventory.egress = vec![Egress::None];
    let egress = lacking(|_| {}, vec![closed]);
    assert!(egress.contains("no host has a way to enforce its egress policy"), "{egress}");
    let gpus = lacking(|job| job.request = gpu_job(1, 2, 40).request, vec![gpu_host(&[24, 80]), host()]);
    assert!(gpus.contains("no host has enough GPUs with that much memory"), "{gpus}");
}

#[test]
fn a_job_of_a_group_goes_only_where_it_can_be_kept_to_it() {
    let mut grouped = job(1);
    grouped.request.egress = Egress::None;
    grouped.request.group = Some("g".into());
    let mut closed = host();
    closed.inventory.egress = vec![Egress::None];
    let plan = plan_for(vec![grouped.clone()], vec![closed]);
    assert_eq!(waits_for(&plan).1, "no host has a way to keep it to its group; see `nave offers`");
    assert_eq!(hosts_of(&plan_for(vec![grouped.clone()], vec![host()])), [1]);
    grouped.group_leases = GROUP_LEASES_MAX;
    assert_eq!(waits_for(&plan_for(vec![grouped], vec![host()])).0, "group_full");
}

/// A job that is kept apart from those with the same number.
fn replica(number: u128, apart: u128) -> QueuedJob {
    let mut replica = job(number);
    replica.request.apart = Some(Uuid::from_u128(apart));
    replica
}

/// Hosts of these miners, the first being the cheapest.
fn hosts_of_miners(miners: &[&str]) -> Vec<SupplyHost> {
    let of = |(dearer, miner): (i64, &&str)| {
        let rate = Rate { vcpu_hour: MicroUsd(RATE.vcpu_hour.0 + dearer), ..RATE };
        SupplyHost { hotkey: (*miner).to_owned(), rate, ..host() }
    };
    (0..).zip(miners).map(of).collect()
}

#[test]
fn jobs_that_are_kept_apart_go_to_hosts_of_different_miners() {
    let hosts = || hosts_of_miners(&["a", "a", "b"]);
    let plan = plan_for(vec![replica(1, 7), replica(2, 7), replica(3, 7)], hosts());
    assert_eq!(hosts_of(&plan), [1, 3]);
    let (code, message) = only_reason(&plan.waiting);
    assert_eq!(code, "no_host_fits");
    assert!(message.contains("an owner who has none of the jobs that it is kept apart from"), "{message}");
    let others = vec![replica(1, 7), replica(2, 8), job(3)];
    assert_eq!(hosts_of(&plan_for(others, hosts())), [1, 1, 1], "these have nothing to do with one another");
    let mut strangers = replica(2, 7);
    strangers.customer = customer_id(2);
    assert_eq!(hosts_of(&plan_for(vec![replica(1, 7), strangers], hosts())), [1, 1]);
}

#[test]
fn a_job_is_kept_apart_from_what_was_placed_before() {
    let mut later = replica(2, 7);
    later.apart_from = ["a".to_owned()].into();
    assert_eq!(hosts_of(&plan_for(vec![later.clone()], hosts_of_miners(&["a", "b"]))), [2]);
    assert_eq!(waits_for(&plan_for(vec![later.clone()], hosts_of_miners(&["a", "a"]))).0, "no_host_fits");
    let mut busy = hosts_of_miners(&["a", "b"]);
    busy[1].milli_cpu_used = MilliCpu(8_000);
    assert_eq!(waits_for(&plan_for(vec![later], busy)).0, "waiting_for_capacity");
}

#[test]
fn hosts_that_lack_different_things_are_told_apart() {
    let mut wanting = job(1);
    wanting.request.resources.milli_cpu = MilliCpu(4_000);
    wanting.request.resources.memory = Bytes(16 * Bytes::GIB);
    let [mut few_cpus, mut little_memory] = [host(), host()];
    few_cpus.inventory.milli_cpu = MilliCpu(2_000);
    little_memory.inventory.memory = Bytes(Bytes::GIB);
    let plan = plan_for(vec![wanting], vec![few_cpus, little_memory]);
    assert_eq!(waits_for(&plan).1, "no host has enough CPU or enough memory; see `nave offers`");
}

#[test]
fn a_busy_market_is_told_from_one_that_never_fits() {
    let mut busy = host();
    busy.memory_used = busy.inventory.memory;
    assert_eq!(waits_for(&plan_for(vec![job(1)], vec![busy])).0, "waiting_for_capacity");
}

#[test]
fn orders_that_are_too_large_for_one_host_are_not_planned_there_and_keep_it_from_nobody() {
    let large = |number, size| {
        let mut job = job(number);
        job.order_bytes = size;
        job
    };
    let plan = plan_for(vec![large(1, ORDER_BYTES_MAX)], vec![host()]);
    assert_eq!(plan.placements.len(), 1, "the largest order fits");

    let gang = || {
        let members = (1..=3).map(|number| {
            let mut member = large(number, ORDER_BYTES_MAX);
            (member.request.group, member.request.gang) = (Some("g".into()), Some(3));
            member.gang = Some(job_id(1));
            member
        });
        members.chain([job(4)]).collect::<Vec<_>>()
    };
    let plan = plan_for(gang(), vec![host()]);
    assert_eq!(plan.placements.iter().map(|placement| placement.job).collect::<Vec<_>>(), [job_id(4)]);
    assert_eq!(plan.placements[0].generation, 5);
    assert_eq!(plan_for(gang(), vec![host(), host()]).placements.len(), 4, "two hosts take them");

    let mut told = host();
    told.order_bytes = ORDERS_BYTES_MAX - 2_000;
    assert_eq!(plan_for(vec![large(1, 2_000)], vec![told.clone()]).placements.len(), 1);
    let plan = plan_for(vec![large(1, 2_001)], vec![told]);
    assert_eq!(waits_for(&plan).0, "waiting_for_capacity", "its leases end");
}

#[test]
fn work_that_would_be_long_to_do_again_goes_where_less_is_lost() {
    let past = |hours: i64, losses| Past { served: Millis(hours * 3_600_000), losses };
    let chosen = |first: SupplyHost, second: SupplyHost, minutes: i64| {
        let mut job = job(1);
        (job.left, job.request.limits.run_ms) = (MicroUsd(1_000_000_000), Millis(100 * 3_600_000));
        job.request.expected_ms = Some(Millis(minutes * 60_000));
        hosts_of(&plan_for(vec![job], vec![first, second]))
    };
    let dear = |percent: i64| {
        let mut host = host();
        host.rate.vcpu_hour.0 += 10_000 * percent;
        host
    };
    let lossy = SupplyHost { past: past(10, 2), ..host() };
    assert_eq!(chosen(lossy.clone(), dear(10), 60 * 48), [2], "0.8 percent an hour of a day's work");
    assert_eq!(chosen(lossy.clone(), dear(10), 60), [1], "little would be done again");
    assert_eq!(
        chosen(SupplyHost { past: past(2_000, 2), ..host() }, dear(10), 60 * 48),
        [1],
        "over many hours"
    );
    // Its owner's other hosts say something of it, its own past says more.
    let of_lossy = SupplyHost { past_elsewhere: past(10, 4), ..host() };
    assert_eq!(chosen(of_lossy.clone(), dear(10), 60 * 48), [2]);
    assert_eq!(chosen(SupplyHost { past: past(2_000, 0), ..of_lossy }, dear(10), 60 * 48), [1]);
}

#[test]
fn who_can_pay_for_no_second_is_told_what_an_hour_costs() {
    let mut poor = job(1);
    poor.left = MicroUsd(1);
    let mut dear = host();
    dear.rate.vcpu_hour = MicroUsd(9_000_000);
    let plan = plan_for(vec![poor], vec![dear, host()]);
    let (code, message) = fails_with(&plan);
    assert_eq!(code, "spend_cap");
    assert!(
        message.contains("at $1.005000 an hour, which is the least that it costs; raise max_spend"),
        "{message}"
    );
}

#[test]
fn equal_jobs_with_orders_of_different_length_are_each_placed_where_theirs_fits() {
    let mut full = host();
    full.order_bytes = ORDERS_BYTES_MAX - 3_000;
    let sized = |number, order_bytes| QueuedJob { order_bytes, ..job(number) };
    let plan = plan_for(vec![sized(1, 4_000), sized(2, 2_000)], vec![full]);
    assert_eq!(plan.placements.iter().map(|placement| placement.job).collect::<Vec<_>>(), [job_id(2)]);
}
