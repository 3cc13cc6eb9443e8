use nave_scheduler::fleet::{Fleet, Gang, Guest, Host, Places, Plan, Request, SpotLease, Waiting};

use super::{fleet, host, share, whole};

const PATIENCE: i64 = 60_000;

fn gang(id: u64, members: &[Request]) -> Gang {
    Gang { id, members: members.to_vec() }
}

fn waiting(id: u64, members: &[Request], since_ms: i64) -> Waiting {
    Waiting { gang: gang(id, members), since_ms, on_demand: false }
}

fn on_demand(id: u64, members: &[Request]) -> Waiting {
    Waiting { on_demand: true, ..waiting(id, members, 0) }
}

fn spot(fleet: &mut Fleet, id: u64, request: Request) -> SpotLease {
    let choice = fleet.decide(&request).expect("a place");
    assert!(fleet.place(choice.host, &request, &choice.devices));
    SpotLease {
        id,
        host: choice.host,
        request,
        devices: choice.devices,
        tenants: Vec::new(),
        order_bytes: 0,
        noticed: false,
    }
}

#[test]
fn a_gang_is_placed_whole_or_not_at_all() {
    let (mut fleet, _) = fleet([host(2), host(1)]);
    let places = fleet.place_gang(&gang(1, &[whole(1), whole(2)])).expect("a place for both");
    assert_eq!(places.iter().map(|choice| choice.devices.len()).collect::<Vec<_>>(), [1, 2]);
    fleet.release_gang(&places);
    assert!(fleet.place_gang(&gang(2, &[whole(2), whole(2)])).is_none());
    assert!(fleet.place_gang(&gang(3, &[whole(1); 3])).is_some(), "what was refused occupies nothing");
}

#[test]
fn a_batch_leaves_the_only_place_to_whoever_has_no_other() {
    // The first would take the cheap host, which alone has two devices.
    let mut cheap = host(2);
    cheap.rate.gpu_hour /= 2;
    let (mut fleet, handles) = fleet([cheap, host(1)]);
    let places = fleet.place_batch(&[gang(1, &[whole(1)]), gang(2, &[whole(2)])]);
    let host = |places: &Option<Places>| places.as_ref().expect("a place")[0].host;
    assert_eq!((host(&places[0]), host(&places[1])), (handles[1], handles[0]));
}

#[test]
fn spot_yields_to_on_demand_after_notice_and_no_more_of_it_than_must() {
    let (mut fleet, _) = fleet([host(2)]);
    let small = spot(&mut fleet, 7, whole(1));
    let dear = spot(&mut fleet, 8, Request { redo_minutes: 60, ..whole(1) });
    let mut leases = vec![dear, small];
    let plan = fleet.plan(&[on_demand(1, &[whole(1)])], &leases, 0, PATIENCE);
    assert_eq!(plan, Plan { notices: vec![(7, 1)], waiting: vec![1], ..Plan::default() });
    // While the notice runs nobody else gets notice, and nobody else gets the place.
    leases[1].noticed = true;
    let both = [on_demand(1, &[whole(1)]), waiting(2, &[whole(1)], 0)];
    let plan = fleet.plan(&both, &leases, 10, PATIENCE);
    assert_eq!(plan, Plan { waiting: vec![1, 2], ..Plan::default() });
    let ended = leases.remove(1);
    fleet.release(ended.host, &ended.request, &ended.devices);
    assert!(fleet.decide(&whole(1)).is_none(), "it is kept for the one that it yields to");
    let plan = fleet.plan(&both, &leases, 20, PATIENCE);
    assert_eq!(plan.placed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1]);
    assert_eq!((plan.notices, plan.waiting), (vec![], vec![2]));
}

#[test]
fn spot_does_not_yield_to_spot_nor_where_it_would_not_help() {
    let (mut fleet, _) = fleet([host(1)]);
    let leases = [spot(&mut fleet, 7, whole(1))];
    let plan = fleet.plan(&[waiting(1, &[whole(1)], 0)], &leases, 0, PATIENCE);
    assert_eq!(plan.notices, []);
    let plan =
        fleet.plan(&[on_demand(2, &[whole(2)]), on_demand(3, &[whole(1), whole(1)])], &leases, 0, PATIENCE);
    assert_eq!((plan.notices, plan.waiting), (vec![], vec![2, 3]));
}

#[test]
fn a_gang_on_demand_counts_free_places_before_it_ends_anybody() {
    let (mut fleet, _) = fleet([host(1), host(1), host(1)]);
    let leases = [spot(&mut fleet, 7, whole(1)), spot(&mut fleet, 8, whole(1))];
    let plan = fleet.plan(&[on_demand(1, &[whole(1), whole(1)])], &leases, 0, PATIENCE);
    assert_eq!(plan.notices, [(7, 1)]);
    assert!(fleet.decide(&whole(1)).is_none(), "the free place is kept for it, too");
}

#[test]
fn spot_leases_of_one_host_yield_to_all_members_of_a_gang() {
    let (mut fleet, _) = fleet([host(3)]);
    let leases = [7, 8, 9].map(|id| spot(&mut fleet, id, whole(1)));
    let plan = fleet.plan(&[on_demand(1, &[whole(1), whole(1)])], &leases, 0, PATIENCE);
    assert_eq!(plan.notices, [(7, 1), (8, 1)]);
}

#[test]
fn a_spot_job_that_yielded_does_not_take_back_what_is_kept_for_the_one_that_it_yielded_to() {
    let (mut fleet, _) = fleet([host(1)]);
    let lease = spot(&mut fleet, 7, whole(1));
    let young = Waiting { since_ms: 2 * PATIENCE, ..on_demand(1, &[whole(1)]) };
    let plan = fleet.plan(std::slice::from_ref(&young), std::slice::from_ref(&lease), 2 * PATIENCE, PATIENCE);
    assert_eq!(plan.notices, [(7, 1)]);
    // It waits again, and has waited for longer than anybody has patience.
    fleet.release(lease.host, &lease.request, &lease.devices);
    let plan = fleet.plan(&[waiting(0, &[whole(1)], 0), young], &[], 2 * PATIENCE, PATIENCE);
    let placed: Vec<u64> = plan.placed.iter().map(|(id, _)| *id).collect();
    assert_eq!((placed, plan.waiting), (vec![1], vec![0]));
}

#[test]
fn a_host_is_kept_no_longer_than_the_wait() {
    let (mut fleet, _) = fleet([host(1)]);
    let leases = [spot(&mut fleet, 7, share(500))];
    fleet.plan(&[on_demand(1, &[whole(1)])], &leases, 0, PATIENCE);
    assert!(fleet.decide(&share(500)).is_none());
    // Who asked has cancelled.
    fleet.plan(&[], &leases, 1, PATIENCE);
    assert!(fleet.decide(&share(500)).is_some());
}

#[test]
fn one_that_can_never_fit_does_not_keep_the_next_from_its_turn() {
    let (mut fleet, handles) = fleet([host(2)]);
    assert!(fleet.place(handles[0], &whole(1), &[0]));
    let old = [waiting(1, &[whole(3)], 0), waiting(2, &[whole(2)], 1)];
    fleet.plan(&old, &[], PATIENCE * 2, PATIENCE);
    assert!(fleet.decide(&whole(1)).is_none(), "it is kept for the second");
}

/// A gang wants all hosts, and small jobs come all the time and would fill every gap.
#[test]
fn nobody_starves() {
    let (mut fleet, _) = fleet([host(4), host(4)]);
    let mut running: Vec<(i64, Gang, Places)> = Vec::new();
    let mut queue = vec![waiting(0, &[whole(4), whole(4)], 0)];
    for at in 0..16 {
        // Small jobs were there first and end one after the other.
        let small = gang(1_000 + at, &[whole(1)]);
        if let Some(places) = fleet.place_gang(&small) {
            running.push((i64::try_from(at).expect("small") * 7_000, small, places));
        }
    }
    for step in 0_i64..200 {
        let now = step * 5_000;
        let ended: Vec<_> = running.extract_if(.., |(until, _, _)| *until <= now).collect();
        ended.iter().for_each(|(_, _, places)| fleet.release_gang(places));
        for at in 0..2 {
            queue.push(waiting(u64::try_from(1 + step * 2 + at).expect("positive"), &[whole(1)], now));
        }
        let plan = fleet.plan(&queue, &[], now, PATIENCE);
        for (id, places) in plan.placed {
            let at = queue.iter().position(|waiting| waiting.gang.id == id).expect("it waited");
            let gang = queue.remove(at).gang;
            if id == 0 {
                return;
            }
            running.push((now + 30_000, gang, places));
        }
    }
    panic!("the gang waits for ever");
}

#[test]
fn a_gang_whose_orders_are_too_large_for_one_host_goes_to_two_and_keeps_none_that_is_not_enough() {
    let small = Host { order_bytes: 4_000, ..host(2) };
    let with = |fleet: &mut Fleet, order_bytes| {
        let guest = Guest { order_bytes, ..Guest::default() };
        Request { guest: fleet.invite(guest), ..whole(1) }
    };
    let (mut one, _) = fleet([small.clone()]);
    let members = [with(&mut one, 3_000), with(&mut one, 3_000)];
    let plan = one.plan(&[waiting(1, &members, 0), waiting(2, &[whole(1)], 0)], &[], 2 * PATIENCE, PATIENCE);
    assert_eq!((plan.placed.len(), plan.waiting), (1, vec![1]));

    let (mut two, handles) = fleet([small.clone(), small]);
    let members = [with(&mut two, 3_000), with(&mut two, 3_000)];
    let gang = gang(1, &members);
    let places = two.place_gang(&gang).expect("a place for both");
    assert_eq!(places.iter().map(|choice| choice.host).collect::<Vec<_>>(), handles);
    let fits = |fleet: &mut Fleet, order_bytes| {
        let request = with(fleet, order_bytes);
        fleet.decide(&request).is_some()
    };
    assert!(fits(&mut two, 1_000) && !fits(&mut two, 1_001));
    two.release_gang(&places);
    assert!(fits(&mut two, 4_000), "an order is forgotten with its lease");
}

#[test]
fn spot_yields_for_what_its_order_takes() {
    let (mut fleet, _) = fleet([Host { order_bytes: 4_000, ..host(2) }]);
    let invited = |fleet: &mut Fleet| fleet.invite(Guest { order_bytes: 3_000, ..Guest::default() });
    let request = Request { guest: invited(&mut fleet), ..whole(1) };
    let lease = SpotLease { order_bytes: 3_000, ..spot(&mut fleet, 7, request) };
    let waits = [on_demand(1, &[Request { guest: invited(&mut fleet), ..whole(1) }])];
    assert_eq!(fleet.plan(&waits, &[lease], 0, PATIENCE).notices, [(7, 1)]);
}
