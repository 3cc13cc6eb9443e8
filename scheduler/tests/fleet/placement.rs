use nave_scheduler::fleet::{Fleet, Gpus, Guest, Host, Rate, Request, Wish};

use super::{GIB, GPU_HOUR, cpu, demand, fleet, host, put, share, whole};

#[test]
fn the_cheapest_host_is_chosen_and_the_first_of_equals() {
    let dear = Host { rate: Rate { gpu_hour: 2 * GPU_HOUR, vcpu_hour: 0, gib_hour: 0 }, ..host(1) };
    let (mut fleet, handles) = fleet([dear, host(1), host(1)]);
    assert_eq!(put(&mut fleet, &whole(1)), Some(handles[1]));
    assert_eq!(put(&mut fleet, &whole(1)), Some(handles[2]));
    assert_eq!(put(&mut fleet, &whole(1)), Some(handles[0]));
    assert_eq!(put(&mut fleet, &whole(1)), None);
}

#[test]
fn a_host_that_is_often_lost_must_be_cheaper_by_the_work_done_again() {
    let risky = |gpu_hour| Host {
        // Lost once in ten hours; three hours are done again.
        loss_ppm: 100_000,
        rate: Rate { gpu_hour, vcpu_hour: 10_000, gib_hour: 1_000 },
        ..host(1)
    };
    let request = Request { redo_minutes: 180, ..whole(1) };
    let (mut dear, handles) = fleet([risky(GPU_HOUR * 8 / 10), host(1)]);
    assert_eq!(put(&mut dear, &request), Some(handles[1]));
    let (mut cheap, handles) = fleet([risky(GPU_HOUR * 7 / 10), host(1)]);
    assert_eq!(put(&mut cheap, &request), Some(handles[0]));
}

#[test]
fn a_short_run_goes_where_it_starts_soon_and_a_long_one_where_it_is_cheap() {
    let slow = Host { start_s: 600, rate: Rate { gpu_hour: GPU_HOUR * 9 / 10, ..host(1).rate }, ..host(1) };
    let (mut fleet, handles) = fleet([slow, host(1)]);
    let minutes = |run_minutes| Request { run_minutes, ..whole(1) };
    assert_eq!(fleet.decide(&minutes(20)).expect("a place").host, handles[1]);
    assert_eq!(fleet.decide(&minutes(1_200)).expect("a place").host, handles[0]);
}

#[test]
fn jobs_without_gpus_stay_off_hosts_with_gpus() {
    let (mut fleet, handles) = fleet([host(8), host(0)]);
    fleet.learn(&demand(&[whole(1), share(500)]));
    assert_eq!(put(&mut fleet, &cpu(12)), Some(handles[1]));
    // But they do not wait for a host of their own.
    assert_eq!(put(&mut fleet, &cpu(12)), Some(handles[0]));
}

#[test]
fn cpu_is_taken_where_gpus_are_used_up() {
    let (mut fleet, handles) = fleet([host(2), host(2)]);
    fleet.learn(&demand(&[Request::new(8_000, 8 * GIB, Gpus::Whole { count: 1, vram_mib: 0 })]));
    let two = Request::new(8_000, 8 * GIB, Gpus::Whole { count: 2, vram_mib: 0 });
    assert!(fleet.place(handles[1], &two, &[0, 1]));
    assert_eq!(put(&mut fleet, &cpu(20)), Some(handles[1]));
}

#[test]
fn a_share_goes_where_its_complement_waits() {
    let (mut fleet, handles) = fleet([host(1), host(1), host(1)]);
    let requests = [share(300), share(700), share(500), whole(1)];
    fleet.learn(&demand(&requests));
    assert!(fleet.place(handles[1], &share(500), &[0]));
    assert!(fleet.place(handles[2], &share(300), &[0]));
    assert_eq!(fleet.decide(&share(700)).expect("a place").host, handles[2]);
    assert_eq!(fleet.decide(&share(500)).expect("a place").host, handles[1]);
}

#[test]
fn a_share_takes_time_and_memory_together_and_never_more_than_there_is() {
    let (mut fleet, handles) = fleet([host(1)]);
    let share = |milli, gib: u32| Request::new(1_000, GIB, Gpus::Share { milli, vram_mib: gib * GIB });
    assert!(fleet.place(handles[0], &share(200, 2), &[0]));
    assert!(fleet.decide(&share(900, 1)).is_none(), "time is oversold");
    assert!(fleet.decide(&share(100, 23)).is_none(), "memory is oversold");
    assert!(fleet.decide(&whole(1)).is_none(), "a shared device is not whole");
    assert!(fleet.decide(&share(800, 4)).is_some());
}

#[test]
fn whole_devices_are_the_smallest_that_suffice() {
    let mixed = Host { vram_mib: vec![80 * GIB, 24 * GIB, 24 * GIB], ..host(3) };
    let (mut fleet, _) = fleet([mixed]);
    let with = |count, gib: u32| Request::new(1_000, GIB, Gpus::Whole { count, vram_mib: gib * GIB });
    assert_eq!(fleet.decide(&with(2, 16)).expect("a place").devices, [1, 2]);
    assert_eq!(fleet.decide(&with(1, 40)).expect("a place").devices, [0]);
    assert!(fleet.decide(&with(2, 40)).is_none());
}

#[test]
fn scarce_classes_are_left_to_those_who_need_them() {
    // Class 1 is wanted by half of all, and is a third of the supply.
    let class = |class| Host { class, ..host(1) };
    let (mut fleet, handles) = fleet([class(1), class(0), class(0)]);
    let choosy = Request { classes: 0b10, ..whole(1) };
    fleet.learn(&demand(&[choosy, whole(1)]));
    assert_eq!(put(&mut fleet, &whole(1)), Some(handles[1]));
    assert_eq!(put(&mut fleet, &choosy), Some(handles[0]));
    // Where nothing else is left it is taken nevertheless.
    fleet.release(handles[0], &choosy, &[0]);
    assert_eq!(put(&mut fleet, &whole(1)), Some(handles[2]));
    assert_eq!(put(&mut fleet, &whole(1)), Some(handles[0]));
}

#[test]
fn hosts_with_many_free_gpus_are_left_to_those_who_need_many() {
    let (mut fleet, handles) = fleet([host(8), host(2), host(2)]);
    fleet.learn(&demand(&[whole(8), whole(1), whole(1)]));
    for _ in 0..4 {
        assert_ne!(put(&mut fleet, &whole(1)), Some(handles[0]));
    }
    assert_eq!(put(&mut fleet, &whole(8)), Some(handles[0]));
}

#[test]
fn nobody_pays_more_than_the_most_it_pays() {
    let (mut fleet, _) = fleet([host(1)]);
    let price = host(1).hourly(&whole(1));
    assert!(fleet.decide(&Request { hourly_max: price - 1, ..whole(1) }).is_none());
    assert_eq!(fleet.decide(&Request { hourly_max: price, ..whole(1) }).expect("a place").hourly, price);
}

#[test]
fn zones_classes_and_needs_are_kept() {
    let (mut fleet, handles) = fleet([Host { zone: 3, has: 0b101, class: 2, ..host(1) }]);
    let here = Request { zones: 1 << 3, needs: 0b100, classes: 1 << 2, ..whole(1) };
    assert_eq!(fleet.decide(&here).expect("a place").host, handles[0]);
    assert!(fleet.decide(&Request { zones: 1 << 2, ..here }).is_none());
    assert!(fleet.decide(&Request { needs: 0b110, ..here }).is_none());
    assert!(fleet.decide(&Request { classes: 1, ..here }).is_none());
}

#[test]
fn a_drained_host_takes_nothing_new_and_a_lost_one_is_gone() {
    let (mut fleet, handles) = fleet([host(1), host(1)]);
    fleet.set_open(handles[0], false);
    assert_eq!(put(&mut fleet, &whole(1)), Some(handles[1]));
    assert!(fleet.decide(&whole(1)).is_none());
    fleet.set_open(handles[0], true);
    assert!(fleet.decide(&whole(1)).is_some());
    assert_eq!(fleet.remove(handles[0]), Some(host(1)));
    assert!(fleet.decide(&whole(1)).is_none());
    assert_eq!(fleet.remove(handles[0]), None);
    let again = fleet.insert(host(1)).expect("a host of usual size");
    assert_eq!(put(&mut fleet, &whole(1)), Some(again));
}

#[test]
fn a_price_that_changes_changes_the_choice() {
    let (mut fleet, handles) = fleet([host(1), host(1)]);
    assert_eq!(fleet.decide(&whole(1)).expect("a place").host, handles[0]);
    fleet.update(handles[1], |host| host.rate.gpu_hour /= 2);
    assert_eq!(fleet.decide(&whole(1)).expect("a place").host, handles[1]);
}

#[test]
fn hosts_that_are_too_large_are_refused() {
    let (mut fleet, _) = fleet([]);
    assert!(fleet.insert(Host { vram_mib: vec![0; 17], ..host(1) }).is_none());
    assert!(fleet.insert(Host { class: 64, ..host(1) }).is_none());
    assert!(fleet.insert(Host { zone: 64, ..host(1) }).is_none());
}

fn of(fleet: &mut Fleet, owner: u32, request: Request) -> Request {
    Request { guest: fleet.invite(Guest { owner, ..Guest::default() }), ..request }
}

#[test]
fn a_share_goes_beside_those_of_its_owner_even_where_another_host_is_cheaper() {
    let dear = Host { rate: Rate { gpu_hour: GPU_HOUR * 3 / 2, ..host(1).rate }, ..host(1) };
    let (mut fleet, handles) = fleet([dear, host(1)]);
    fleet.learn(&demand(&[whole(1), share(250)]));
    let (ada, eve) = (of(&mut fleet, 1, share(250)), of(&mut fleet, 2, share(250)));
    assert!(fleet.place(handles[0], &ada, &[0]));
    assert_eq!(fleet.decide(&ada).expect("a place").host, handles[0]);
    assert_eq!(fleet.decide(&eve).expect("a place").host, handles[1]);
}

#[test]
fn a_device_that_somebody_shares_is_nobody_elses_until_the_last_share_ends() {
    let (mut fleet, handles) = fleet([host(1)]);
    let (ada, eve) = (of(&mut fleet, 1, share(250)), of(&mut fleet, 2, share(250)));
    let other_size = of(&mut fleet, 1, share(300));
    assert!(fleet.place(handles[0], &ada, &[0]) && fleet.place(handles[0], &ada, &[0]));
    fleet.release(handles[0], &ada, &[0]);
    for request in [eve, other_size, share(250), whole(1)] {
        assert!(fleet.decide(&request).is_none() && !fleet.place(handles[0], &request, &[0]));
    }
    fleet.release(handles[0], &ada, &[0]);
    assert!(fleet.decide(&eve).is_some() && fleet.decide(&whole(1)).is_some());
}

#[test]
fn the_host_is_chosen_whose_rest_is_worth_least_when_a_device_is_shared() {
    let class = |class, gpu_hour| Host { class, rate: Rate { gpu_hour, ..host(1).rate }, ..host(1) };
    let (mut fleet, handles) = fleet([class(1, GPU_HOUR), class(0, GPU_HOUR * 11 / 10)]);
    fleet.set_worth(1, GPU_HOUR * 2);
    fleet.learn(&demand(&[whole(1), share(250)]));
    let ada = of(&mut fleet, 1, share(250));
    assert_eq!(fleet.decide(&ada).expect("a place").host, handles[1]);
}

#[test]
fn where_no_share_is_free_what_is_wished_instead_is_taken() {
    let (mut fleet, handles) = fleet([host(1), host(1)]);
    let whole_of = |device| Wish { masks: vec![0, 1], gpus: Some(device), otherwise: 0 };
    let instead = fleet.wish(whole_of(whole(1).gpus));
    let wish = fleet.wish(Wish { masks: vec![1, 0], gpus: Some(share(250).gpus), otherwise: instead });
    let request = Request { wish, ..of(&mut fleet, 1, share(250)) };
    let first = fleet.decide(&request).expect("a share");
    assert_eq!((first.host, first.request.gpus), (handles[0], share(250).gpus));
    assert!(fleet.place(handles[0], &whole(1), &[0]));
    let second = fleet.decide(&request).expect("a device");
    assert_eq!((second.host, second.request.gpus), (handles[1], whole(1).gpus));
    assert!(fleet.place(second.host, &second.request, &second.devices));
    assert!(fleet.decide(&request).is_none());
}
