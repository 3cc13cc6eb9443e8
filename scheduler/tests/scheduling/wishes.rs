//! What jobs ask of a place, and what they are told when there is none.

use std::collections::BTreeMap;

use nave_domain::{
    Bytes, MicroUsd, MilliCpu, QuoteId,
    host::{Term, Trust},
    job::{GpuRequest, Isolation, TermWish},
    lease::ChosenFor,
    region::Area,
};
use nave_scheduler::planner::{Plan, plan};
use nave_store::{AskedQuote, Baselines, QueuedJob, QuoteAnswer, Snapshot, SupplyHost};
use uuid::Uuid;

use crate::supply::{
    NOW, customer_id, device, gpu_host, gpu_job, host, host_id, hosts_of, job, job_id, plan_for, snapshot,
};

/// A host with GPUs of one model.
fn of_model(model: &str, sizes: &[i64]) -> SupplyHost {
    let mut host = gpu_host(sizes);
    for device in &mut host.inventory.devices {
        model.clone_into(&mut device.model);
    }
    host
}

fn wanting(models: &[&str], count: u8) -> QueuedJob {
    let mut job = gpu_job(1, count, 0);
    let gpu = job.request.resources.gpu.get_or_insert_default();
    gpu.models = models.iter().map(|model| (*model).to_owned()).collect();
    job
}

fn waits_for(plan: &Plan) -> (&'static str, &str) {
    let [(_, reason)] = plan.waiting.as_slice() else { panic!("one job that waits: {plan:?}") };
    (reason.code, reason.message.as_str())
}

#[test]
fn models_are_taken_in_their_order_as_far_as_one_is_free() {
    let hosts = || vec![of_model("NVIDIA A100-SXM4-80GB", &[80]), of_model("NVIDIA H100 80GB HBM3", &[80])];
    assert_eq!(hosts_of(&plan_for(vec![wanting(&["H100", "A100"], 1)], hosts())), [2]);
    assert_eq!(hosts_of(&plan_for(vec![wanting(&["B200", "A100"], 1)], hosts())), [1]);
    let mut busy = hosts();
    busy[1].devices_used = vec!["GPU-0".into()];
    assert_eq!(hosts_of(&plan_for(vec![wanting(&["H100", "A100"], 1)], busy.clone())), [1]);
    let plan = plan_for(vec![wanting(&["H100"], 1)], busy);
    assert_eq!(waits_for(&plan).0, "waiting_for_capacity", "the wish is one that could be met");
}

#[test]
fn what_a_gpu_was_measured_to_be_counts_and_not_what_it_calls_itself() {
    let mut host = of_model("NVIDIA H100 80GB HBM3", &[80]);
    host.classes = BTreeMap::from([("GPU-0".to_owned(), "rtx-4090".to_owned())]);
    host.models = BTreeMap::from([("GPU-0".to_owned(), vec!["NVIDIA GeForce RTX 4090".to_owned()])]);
    let placed = |wanted| plan_for(vec![wanting(&[wanted], 1)], vec![host.clone()]).placements.len();
    assert_eq!((placed("H100"), placed("RTX 4090"), placed("GeForce RTX 4090")), (0, 1, 1));
}

#[test]
fn a_class_is_as_good_as_a_model() {
    let mut host = gpu_host(&[80, 80]);
    host.classes = BTreeMap::from([("GPU-1".to_owned(), "h100-sxm".to_owned())]);
    let plan = plan_for(vec![wanting(&["h100-sxm"], 1)], vec![host]);
    assert_eq!(plan.placements[0].devices, ["GPU-1"]);
}

#[test]
fn memory_is_bounded_on_both_sides() {
    let mut job = gpu_job(1, 1, 20);
    job.request.resources.gpu =
        Some(GpuRequest { vram: Bytes(20 << 30), vram_max: Some(Bytes(40 << 30)), ..GpuRequest::default() });
    let plan = plan_for(vec![job.clone()], vec![gpu_host(&[16, 80, 40])]);
    assert_eq!(plan.placements[0].devices, ["GPU-2"]);
    let plan = plan_for(vec![job], vec![gpu_host(&[80])]);
    let (code, message) = waits_for(&plan);
    assert_eq!(code, "no_host_of_model");
    assert!(message.contains("of at most 40 GiB; nearest: 1 x test 80 GiB"), "{message}");
}

#[test]
fn each_wish_is_met_or_named_with_the_nearest_offer() {
    let mut there = of_model("NVIDIA A100 80GB", &[80, 80]);
    there.terms.region = "us".parse().ok();
    there.terms.term = Term::Spot;
    there.rate.gpu_hour = MicroUsd(1_490_000);
    let told = |change: fn(&mut QueuedJob)| {
        let mut job = wanting(&[], 2);
        change(&mut job);
        let plan = plan_for(vec![job], vec![there.clone()]);
        plan.waiting.first().map(|(_, reason)| (reason.code, reason.message.clone()))
    };
    let nearest = "nearest: 2 x NVIDIA A100 80GB 80 GiB at $1.490000 an hour each in us, spot, verified";
    let told = |change, code: &'static str, what: &str| {
        let remedy = if code == "no_host_at_price" { "; to run there: --max-price 1.992500" } else { "" };
        assert_eq!(told(change), Some((code, format!("no host has {what}; {nearest}{remedy}"))));
    };
    told(|job| job.request.region = "eu".parse().ok(), "no_host_in_region", "2 x any GPU in eu");
    told(|job| job.request.term = TermWish::OnDemand, "no_host_on_term", "2 x any GPU on demand");
    told(
        |job| job.request.max_price = Some(MicroUsd(1_490_000)),
        "no_host_at_price",
        "2 x any GPU for $1.490000 an hour each or less",
    );
    told(
        |job| job.request.resources.gpu.get_or_insert_default().models = vec!["H100".into()],
        "no_host_of_model",
        "2 x H100",
    );
    let mut met = wanting(&["A100"], 2);
    met.request.region = "us".parse().ok();
    met.request.term = TermWish::Spot;
    // Cores and memory have their price, too.
    met.request.max_price = Some(MicroUsd(2_000_000));
    assert_eq!(hosts_of(&plan_for(vec![met], vec![there.clone()])), [1]);
}

#[test]
fn a_gpu_that_nobody_can_rate_waits_for_a_customer_who_says_so_and_tells_how() {
    let mut host = gpu_host(&[80]);
    host.terms.trust = Trust::Unrated;
    let plan = plan_for(vec![gpu_job(1, 1, 8)], vec![host.clone()]);
    let (code, message) = waits_for(&plan);
    assert_eq!(code, "no_host_trusted");
    assert!(message.contains("1 x 8 GiB GPU and is verified or attested or cloud"), "{message}");
    assert!(message.ends_with("to run there: --trust verified,attested,cloud,unrated"), "{message}");
    let mut trusting = gpu_job(1, 1, 8);
    trusting.request.trust.insert(Trust::Unrated);
    let plan = plan_for(vec![trusting], vec![host.clone()]);
    assert_eq!(plan.placements[0].grounds.trust, Trust::Unrated);
    let plan = plan_for(vec![job(1)], vec![host]);
    assert_eq!(plan.placements[0].grounds.trust, Trust::Verified, "a job without GPUs needs none rated");
}

#[test]
fn who_wants_a_host_alone_gets_it_so_and_keeps_others_off() {
    let mut alone = job(1);
    alone.request.isolation = Isolation::Host;
    let mut other = job(2);
    other.customer = customer_id(2);
    let plan = plan_for(vec![alone.clone(), other.clone()], vec![host()]);
    assert_eq!((plan.placements.len(), waits_for(&plan).0), (1, "waiting_for_capacity"));
    other.job = job_id(0);
    let plan = plan_for(vec![other.clone(), alone.clone()], vec![host()]);
    assert_eq!((plan.placements[0].job, waits_for(&plan).0), (job_id(0), "waiting_for_capacity"));
    let plan = plan_for(vec![other, alone.clone()], vec![host(), host()]);
    assert_eq!(hosts_of(&plan), [1, 2]);
    let plan = plan_for(vec![alone, job(2)], vec![host()]);
    assert_eq!(plan.placements.len(), 2, "the customer's own jobs are nobody else's");
}

#[test]
fn a_placement_says_why_it_is_there_and_what_clouds_ask() {
    let mut dear = gpu_host(&[80]);
    dear.rate.gpu_hour = MicroUsd(4_000_000);
    let mut cheap = gpu_host(&[80, 80]);
    cheap.rate.gpu_hour = MicroUsd(900_000);
    cheap.classes =
        BTreeMap::from([("GPU-0".to_owned(), "a".to_owned()), ("GPU-1".to_owned(), "b".to_owned())]);
    cheap.terms.region = "eu".parse().ok();
    let prices = [("a", Some(Area::Europe), 2_000_000), ("a", None, 9), ("b", None, 3_000_001)];
    let prices = prices.map(|(class, area, price)| ((class.to_owned(), area), MicroUsd(price)));
    let of = |jobs, hosts| {
        let snapshot = Snapshot { baselines: Baselines::from_iter(prices.clone()), ..snapshot(jobs, hosts) };
        let plan = plan(&snapshot);
        (plan.placements[0].grounds.reason, plan.placements[0].grounds.baseline)
    };
    let both = vec![dear.clone(), cheap.clone()];
    assert_eq!(of(vec![gpu_job(1, 1, 8)], both.clone()), (ChosenFor::Cheapest, Some(MicroUsd(2_000_000))));
    assert_eq!(of(vec![gpu_job(1, 2, 8)], both.clone()), (ChosenFor::OnlyFit, Some(MicroUsd(2_500_000))));
    assert_eq!(of(vec![gpu_job(1, 1, 8)], vec![dear.clone()]), (ChosenFor::OnlyFit, None), "it has no class");
    let mut unlucky = gpu_job(1, 1, 8);
    unlucky.failed_on = vec![host_id(2)];
    unlucky.queued_at.0 -= 60_000;
    assert_eq!(of(vec![unlucky], both), (ChosenFor::FailedElsewhere, None));
    let mut plain = host();
    plain.rate.vcpu_hour = MicroUsd(1_250_000);
    let mut wide = job(1);
    wide.request.resources.milli_cpu = MilliCpu(5_000);
    assert_eq!(of(vec![wide], vec![gpu_host(&[80]), plain]), (ChosenFor::KeepsGpusFree, None));
}

fn member(number: u128, size: u8) -> QueuedJob {
    let mut job = job(number);
    (job.request.group, job.request.gang) = (Some("g".into()), Some(size));
    job.gang = Some(job_id(1));
    job
}

#[test]
fn a_gang_waits_until_all_of_it_is_queued_and_all_of_it_fits() {
    let two = || vec![member(1, 3), member(2, 3)];
    let plan = plan_for(two(), vec![host()]);
    assert!(plan.placements.is_empty());
    assert!(plan.waiting.iter().all(|(_, reason)| reason.code == "gang_incomplete"), "{plan:?}");
    assert!(plan.waiting[0].1.message.contains("2 of the 3 jobs"), "{plan:?}");

    let three = || vec![member(1, 3), member(2, 3), job(3), member(4, 3)];
    let plan = plan_for(three(), vec![host()]);
    let gangs: Vec<_> = plan.placements.iter().map(|placement| (placement.job, placement.gang)).collect();
    let of = |number| (job_id(number), Some(job_id(1)));
    assert_eq!(gangs, [of(1), of(2), of(4), (job_id(3), None)], "its placements stand together");

    let mut small = host();
    small.inventory.milli_cpu = MilliCpu(2_000);
    let plan = plan_for(three(), vec![small.clone()]);
    assert_eq!(plan.placements.iter().map(|placement| placement.job).collect::<Vec<_>>(), [job_id(3)]);
    assert_eq!(plan.placements[0].generation, 5, "what the gang took for a moment was given back");
    assert_eq!(plan.waiting.len(), 3);
    assert!(plan.waiting.iter().all(|(_, reason)| reason.code == "gang_waits"), "{plan:?}");
    assert!(plan.waiting[0].1.message.starts_with("1 of the 3 jobs of its gang would fit now"), "{plan:?}");
    assert_eq!(hosts_of(&plan_for(three(), vec![small.clone(), small])).len(), 4, "on two hosts they fit");
}

#[test]
fn whoever_is_in_another_gang_takes_nobodys_place() {
    let mut jobs: Vec<QueuedJob> = (1..=5).map(|number| member(number, 2)).collect();
    for (job, gang) in jobs.iter_mut().zip([1, 2, 2, 4, 4]) {
        job.gang = Some(job_id(gang));
    }
    let plan = plan_for(jobs, vec![host()]);
    assert_eq!((plan.placements.len(), plan.waiting.len()), (4, 1));
    assert_eq!((plan.waiting[0].0, plan.waiting[0].1.code), (job_id(1), "gang_incomplete"));
}

#[test]
fn one_of_a_gang_that_must_run_again_starts_alone() {
    let mut again = member(1, 3);
    again.attempts = 1;
    assert_eq!(hosts_of(&plan_for(vec![again], vec![host()])), [1]);
}

#[test]
fn a_gang_with_a_member_that_cannot_be_placed_any_more_fails_that_one() {
    let mut poor = member(2, 2);
    poor.left = MicroUsd(1);
    let plan = plan_for(vec![member(1, 2), poor], vec![host()]);
    assert_eq!((plan.failed.len(), plan.failed[0].0), (1, job_id(2)));
    assert_eq!((plan.waiting.len(), plan.waiting[0].0), (1, job_id(1)));
}

fn asked(number: u128, of: &QueuedJob, is_held: bool) -> AskedQuote {
    let quote = QuoteId(Uuid::from_u128(number));
    AskedQuote { quote, customer: of.customer, request: of.request.clone(), asked_at: NOW, is_held }
}

#[test]
fn a_quote_is_the_placement_that_a_job_would_get_after_those_that_wait() {
    let mut wide = job(1);
    wide.request.resources.milli_cpu = MilliCpu(5_000);
    let mut dear = host();
    dear.rate.vcpu_hour = MicroUsd(2_000_000);
    let quotes = vec![asked(7, &wide, true), asked(8, &wide, true)];
    let snapshot = Snapshot { quotes, ..snapshot(vec![wide.clone()], vec![host(), dear]) };
    let plan = plan(&snapshot);
    assert_eq!(hosts_of(&plan), [1]);
    let QuoteAnswer::Place(place) = &plan.quotes[0].answer else { panic!("a place: {plan:?}") };
    assert_eq!((place.host, place.generation, place.job), (host_id(2), 5, job_id(7)));
    assert_eq!(plan.quotes[0].considered[0].code, "busy");
    let QuoteAnswer::None(code, _) = &plan.quotes[1].answer else { panic!("no place: {plan:?}") };
    assert_eq!(code, "waiting_for_capacity", "the first quote holds the rest");
}

#[test]
fn who_only_looks_is_in_nobodys_way_and_sees_what_else_there_was() {
    let mut dear = gpu_host(&[80]);
    dear.rate.gpu_hour = MicroUsd(9_000_000);
    let mut elsewhere = gpu_host(&[80]);
    elsewhere.terms.region = "us".parse().ok();
    let mut wish = gpu_job(1, 1, 8);
    wish.request.region = "eu".parse().ok();
    let mut hosts = vec![gpu_host(&[80]), dear, elsewhere, host()];
    for host in &mut hosts[..2] {
        host.terms.region = "eu".parse().ok();
    }
    hosts[3].terms.region = "eu".parse().ok();
    let snapshot =
        Snapshot { quotes: vec![asked(7, &wish, false), asked(8, &wish, false)], ..snapshot(vec![], hosts) };
    let plan = plan(&snapshot);
    for quoted in &plan.quotes {
        let QuoteAnswer::Place(place) = &quoted.answer else { panic!("a place: {plan:?}") };
        assert_eq!(place.host, host_id(1), "both see the same");
        let mut considered: Vec<_> =
            quoted.considered.iter().map(|other| (other.host, other.code.as_str())).collect();
        assert_eq!(considered[0], (host_id(2), "not_better"));
        considered.sort_unstable();
        assert_eq!(considered, [(host_id(2), "not_better"), (host_id(3), "region"), (host_id(4), "gpus")]);
    }
}

/// A host of which each GPU costs $4.01 an hour with one core and a GiB of memory.
fn of_class(class: &str) -> SupplyHost {
    let mut host = gpu_host(&[80]);
    host.classes = BTreeMap::from([("GPU-0".to_owned(), class.to_owned())]);
    host
}

/// What becomes of jobs where clouds ask that much for an H100.
fn where_clouds_ask(micro_usd: i64, jobs: Vec<QueuedJob>, hosts: Vec<SupplyHost>) -> Plan {
    let baselines = [(("h100-sxm".to_owned(), None), MicroUsd(micro_usd))].into_iter().collect();
    plan(&Snapshot { baselines, ..snapshot(jobs, hosts) })
}

#[test]
fn a_host_that_asks_more_than_clouds_gets_only_jobs_that_say_so() {
    let mut job = gpu_job(1, 1, 8);
    job.request.resources.memory = Bytes(Bytes::GIB);
    let asked =
        |clouds, job: &QueuedJob, host: SupplyHost| where_clouds_ask(clouds, vec![job.clone()], vec![host]);
    let dear = of_class("h100-sxm");
    assert_eq!(hosts_of(&asked(4_010_000, &job, dear.clone())), [1]);
    let plan = asked(4_009_999, &job, dear.clone());
    let (code, message) = waits_for(&plan);
    assert_eq!(code, "no_host_at_price");
    assert_eq!(
        message,
        "no host has 1 x 8 GiB GPU for what clouds ask or less; nearest: 1 x test 80 GiB at $3.000000 an hour each, \
         on demand, verified; to run there: --max-price 4.010000"
    );
    let mut bidding = job.clone();
    bidding.request.max_price = Some(MicroUsd(4_010_000));
    assert_eq!(hosts_of(&asked(1, &bidding, dear.clone())), [1]);
    bidding.request.max_price = Some(MicroUsd(4_009_999));
    assert_eq!(
        waits_for(&asked(9_000_000, &bidding, dear.clone())).0,
        "no_host_at_price",
        "they may pay less, too"
    );

    let mut rented = dear.clone();
    rented.terms.trust = Trust::Cloud;
    assert_eq!(hosts_of(&asked(1, &job, rented)), [1], "what the market rents costs what it costs");
    assert_eq!(hosts_of(&asked(1, &job, of_class("another"))), [1], "nobody knows what it costs elsewhere");
    assert_eq!(hosts_of(&asked(1, &self::job(2), dear)), [1], "no cloud says what cores cost");
}

#[test]
fn of_a_host_with_several_classes_those_are_taken_that_clouds_ask_as_much_for() {
    let mut host = of_class("h100-sxm");
    host.inventory.devices.push(device(1, 80));
    host.classes.insert("GPU-1".into(), "another".into());
    let plan = where_clouds_ask(1, vec![gpu_job(1, 1, 8)], vec![host.clone()]);
    assert_eq!(plan.placements[0].devices, ["GPU-1"]);
    let plan = where_clouds_ask(1, vec![gpu_job(1, 2, 8)], vec![host]);
    assert_eq!(waits_for(&plan).0, "no_host_at_price");
}

#[test]
fn a_job_waits_for_a_host_that_asks_less_than_clouds_while_a_dearer_one_is_free() {
    let mut busy = of_class("h100-sxm");
    busy.rate.gpu_hour = MicroUsd(1_000_000);
    busy.devices_used = vec!["GPU-0".into()];
    let hosts = vec![busy, of_class("h100-sxm")];
    let waiting = where_clouds_ask(3_000_000, vec![gpu_job(1, 1, 8)], hosts.clone());
    assert_eq!(waits_for(&waiting).0, "waiting_for_capacity");
    let asked = AskedQuote {
        quote: QuoteId(Uuid::from_u128(7)),
        customer: customer_id(1),
        request: gpu_job(1, 1, 8).request,
        asked_at: NOW,
        is_held: false,
    };
    let baselines = [(("h100-sxm".to_owned(), None), MicroUsd(3_000_000))].into_iter().collect();
    let quoted =
        plan(&Snapshot { quotes: vec![asked], baselines, ..snapshot(vec![], hosts) }).quotes.remove(0);
    assert!(matches!(quoted.answer, QuoteAnswer::None(..)), "{quoted:?}");
    let codes: Vec<&str> = quoted.considered.iter().map(|other| other.code.as_str()).collect();
    assert_eq!(codes, ["busy", "max_price"], "a quote says so, too");
}

#[test]
fn wishes_that_fail_only_together_are_named_together() {
    let mut host = of_model("NVIDIA A100", &[80]);
    host.terms.region = "us".parse().ok();
    host.terms.trust = Trust::Unrated;
    let mut far = of_model("NVIDIA A100", &[80]);
    (far.terms.trust, far.terms.term) = (Trust::Unrated, Term::Spot);
    let mut job = wanting(&["A100"], 1);
    (job.request.region, job.request.term) = ("eu".parse().ok(), TermWish::OnDemand);
    let plan = plan_for(vec![job], vec![far, host]);
    let (code, message) = waits_for(&plan);
    assert_eq!(code, "no_host_in_region");
    assert!(
        message.starts_with("no host has 1 x A100 in eu and is verified or attested or cloud; nearest: "),
        "{message}"
    );
    assert!(message.contains("in us, on demand, unrated; to run there: --trust "), "{message}");
}

#[test]
fn the_fewest_wishes_without_which_a_host_would_do_are_named() {
    let mut dear = of_model("NVIDIA A100", &[80]);
    dear.rate.gpu_hour = MicroUsd(9_000_000);
    let mut two = of_model("NVIDIA L4", &[24]);
    (two.rate.gpu_hour, two.terms.term) = (MicroUsd(1), Term::Spot);
    let mut job = wanting(&["A100"], 1);
    (job.request.max_price, job.request.term) = (Some(MicroUsd(4_500_000)), TermWish::OnDemand);
    let plan = plan_for(vec![job], vec![two, dear]);
    assert_eq!(waits_for(&plan).0, "no_host_at_price");
}
