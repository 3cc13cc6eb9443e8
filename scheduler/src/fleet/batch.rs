//! Several requests at once: gangs, which are placed whole or not at all, and batches, where
//! it matters who comes first when gangs want the same hosts.

use std::cmp::Reverse;

use super::{Choice, Fleet, request::Request};

/// Requests that are placed all together or not at all; mostly one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gang {
    /// Whose they are; hosts may be kept for it.
    pub id: u64,
    /// One for each member.
    pub members: Vec<Request>,
}

/// Where the members of a gang go, in their order.
pub type Places = Vec<Choice>;

/// Where members of a gang should go, for those for whom that is decided.
pub(super) type Wish = Vec<Option<Choice>>;

/// Gangs that are weighed against one another.
const WEIGHED_MAX: usize = 5;
/// Places that are tried for a member, besides the cheapest.
const OPTIONS_MAX: usize = 16;
/// Decisions after which gangs that are weighed against one another go where the best way so far has them.
const DECISIONS_MAX: usize = 1 << 14;
/// How often each gang of a batch is tried elsewhere.
const PASSES: usize = 3;
/// In a hurry a batch is good enough when it costs no more than this many percent above what
/// its gangs would cost if each had the fleet for itself.
const SPARE_PERCENT: i64 = 1;
/// What an hour of waiting costs, in prices of what waits: late work is worth less than
/// work in time by more than any host is dearer than another.
const WAIT_PRICES: i64 = 3;

impl Fleet {
    /// Occupies the cheapest places for all members of a gang; changes nothing where one has none.
    pub fn place_gang(&mut self, gang: &Gang) -> Option<Places> {
        self.decisions = 0;
        self.place_wished(gang, &free(gang))
    }

    /// Gives back what a gang occupied.
    pub fn release_gang(&mut self, places: &Places) {
        for choice in places {
            self.release(choice.host, &choice.request, &choice.devices);
        }
    }

    /// Occupies places for a batch, as cheaply as can be found when waiting has its price,
    /// with `None` for those that wait. A few gangs are weighed against one another with
    /// care; more of them only a few at a time, in the order in which they are given, and
    /// only where they are in each other's way.
    pub fn place_batch(&mut self, gangs: &[Gang]) -> Vec<Option<Places>> {
        let hurry = gangs.len() > WEIGHED_MAX;
        gangs.chunks(WEIGHED_MAX).flat_map(|few| self.place_few(few, hurry)).collect()
    }

    fn place_few(&mut self, gangs: &[Gang], hurry: bool) -> Vec<Option<Places>> {
        self.decisions = 0;
        let alone: Vec<Option<Alone>> = gangs.iter().map(|gang| self.alone(gang)).collect();
        let sum: i64 = alone.iter().flatten().map(|alone| alone.cost).sum();
        let enough = if hurry { sum.saturating_add(sum / 100 * SPARE_PERCENT) } else { i64::MIN };
        // Whoever finds no place when alone finds none beside others.
        let mut order: Vec<usize> = (0..gangs.len()).filter(|at| alone[*at].is_some()).collect();
        order.sort_by_key(|at| Reverse(gangs[*at].members.iter().map(hardness).max()));
        let mut best = Tried { cost: i64::MAX, places: Vec::new() };
        for order in orders(&order) {
            if best.cost > enough && (best.places.is_empty() || self.decisions < DECISIONS_MAX) {
                let turns = order.iter().map(|at| (*at, free(&gangs[*at]))).collect();
                best.take_cheaper(self.try_out(gangs, turns, &alone));
            }
        }
        for _ in 0..PASSES {
            let before = best.cost;
            for at in (0..gangs.len()).filter(|at| alone[*at].is_some()) {
                if best.cost > enough {
                    self.try_elsewhere(gangs, at, &order, &alone, &mut best);
                }
            }
            if best.cost == before {
                break;
            }
        }
        if !hurry && !order.is_empty() {
            best = self.search(gangs, &alone, &order, best);
        }
        for choice in best.places.iter().flatten().flatten() {
            self.place(choice.host, &choice.request, &choice.devices);
        }
        best.places
    }

    fn alone(&mut self, gang: &Gang) -> Option<Alone> {
        let places = self.place_wished(gang, &free(gang))?;
        self.release_gang(&places);
        Some(Alone {
            cost: places.iter().map(|choice| choice.cost).sum(),
            hourly: places.iter().map(|choice| choice.hourly).sum(),
        })
    }

    /// Tries each member of a gang at other places, while the other gangs stay where they can.
    fn try_elsewhere(
        &mut self,
        gangs: &[Gang],
        at: usize,
        order: &[usize],
        alone: &[Option<Alone>],
        best: &mut Tried,
    ) {
        let gang = &gangs[at];
        for (member, request) in gang.members.iter().enumerate() {
            for option in self.options(request, gang.id, OPTIONS_MAX) {
                if self.decisions >= DECISIONS_MAX {
                    return;
                }
                let mut wish = free(gang);
                wish[member] = Some(option);
                let others = order.iter().filter(|other| **other != at);
                let stay = others.filter_map(|other| Some((*other, wished(best.places[*other].as_ref()?))));
                let anywhere = order.iter().map(|at| (*at, free(&gangs[*at])));
                let turns = std::iter::once((at, wish)).chain(stay).chain(anywhere).collect();
                let tried = self.try_out(gangs, turns, alone);
                best.take_cheaper(tried);
            }
        }
    }

    /// What comes of gangs that take their turns, a gang with several the first that it can;
    /// nothing is occupied then.
    fn try_out(&mut self, gangs: &[Gang], turns: Vec<(usize, Wish)>, alone: &[Option<Alone>]) -> Tried {
        let mut places: Vec<Option<Places>> = vec![None; gangs.len()];
        for (at, wish) in turns {
            if places[at].is_none() {
                places[at] = self.place_wished(&gangs[at], &wish);
            }
        }
        places.iter().flatten().for_each(|places| self.release_gang(places));
        Tried { cost: cost(&places, alone), places }
    }

    /// Occupies places for all members, those that are wished and otherwise the cheapest.
    pub(super) fn place_wished(&mut self, gang: &Gang, wish: &Wish) -> Option<Places> {
        // After those whose place is decided the hardest: what suffices for them is scarcest.
        let mut order: Vec<usize> = (0..gang.members.len()).collect();
        order.sort_by_key(|at| (wish[*at].is_none(), Reverse(hardness(&gang.members[*at]))));
        for _ in 0..gang.members.len() {
            match self.place_ordered(gang, wish, &order) {
                Ok(places) => return Some(places),
                // Whoever finds no place goes first in the next attempt, unless those before are like it.
                Err(without) => {
                    let last = order[without];
                    let is_like = |at: &usize| {
                        wish[*at] == wish[last]
                            && self.guests.are_alike(&gang.members[*at], &gang.members[last])
                    };
                    if self.decisions >= DECISIONS_MAX || order[..without].iter().all(is_like) {
                        return None;
                    }
                    order[..=without].rotate_right(1);
                }
            }
        }
        None
    }

    /// The places of all members, or where in the order the first one is that has none.
    fn place_ordered(&mut self, gang: &Gang, wish: &Wish, order: &[usize]) -> Result<Places, usize> {
        let mut placed: Vec<(usize, Choice)> = Vec::new();
        for (turn, at) in order.iter().enumerate() {
            let member = &gang.members[*at];
            self.decisions += 1;
            let choice = match &wish[*at] {
                Some(Choice { host, devices, request, .. }) => {
                    self.choice(*host, request, devices, Some(gang.id))
                }
                None => self.decide_for(member, Some(gang.id)),
            };
            match choice {
                Some(choice) if self.place(choice.host, &choice.request, &choice.devices) => {
                    placed.push((*at, choice))
                }
                Some(_) | None => {
                    for (_, choice) in placed {
                        self.release(choice.host, &choice.request, &choice.devices);
                    }
                    return Err(turn);
                }
            }
        }
        placed.sort_by_key(|(at, _)| *at);
        Ok(placed.into_iter().map(|(_, choice)| choice).collect())
    }
}

/// A way to place a batch.
pub(super) struct Tried {
    pub cost: i64,
    pub places: Vec<Option<Places>>,
}

impl Tried {
    pub(super) fn take_cheaper(&mut self, other: Self) {
        if other.cost < self.cost {
            *self = other;
        }
    }
}

/// What a gang would cost if it had the fleet for itself.
pub(super) struct Alone {
    cost: i64,
    hourly: i64,
}

/// What a batch costs, waiting included.
pub(super) fn cost(places: &[Option<Places>], alone: &[Option<Alone>]) -> i64 {
    let of = |(places, alone): (&Option<Places>, &Option<Alone>)| match places {
        Some(places) => places.iter().map(|choice| choice.cost).sum(),
        None => alone.as_ref().map_or(0, |alone| WAIT_PRICES.saturating_mul(alone.hourly)),
    };
    places.iter().zip(alone).map(of).sum()
}

/// All members anywhere.
pub(super) fn free(gang: &Gang) -> Wish {
    vec![None; gang.members.len()]
}

/// All members where they are.
fn wished(places: &Places) -> Wish {
    places.iter().cloned().map(Some).collect()
}

/// Many devices before few, large shares before small ones, then CPU and memory.
fn hardness(request: &Request) -> (u8, u32, u32, u32) {
    (request.whole(), request.gpu_milli(), request.milli_cpu, request.memory_mib)
}

/// All orders, the given one first (Heap's algorithm).
fn orders(first: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let mut order = first.to_vec();
    let mut turns = vec![0; first.len()];
    let mut at = 0;
    let mut next = Some(order.clone());
    std::iter::from_fn(move || {
        let given = next.take()?;
        while at < turns.len() {
            if turns[at] < at {
                order.swap(if at % 2 == 0 { 0 } else { turns[at] }, at);
                turns[at] += 1;
                at = 0;
                next = Some(order.clone());
                break;
            }
            turns[at] = 0;
            at += 1;
        }
        Some(given)
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Gpus, Host, Rate},
        *,
    };

    fn fleet(devices: usize) -> Fleet {
        let mut fleet = Fleet::new();
        for _ in 0..devices {
            let host = Host {
                milli_cpu: 16_000,
                memory_mib: 1 << 16,
                disk_mib: 1 << 20,
                vram_mib: vec![1 << 14],
                class: 0,
                zone: 0,
                miner: 0,
                has: 0,
                rate: Rate { gpu_hour: 1_000_000, vcpu_hour: 10_000, gib_hour: 1_000 },
                loss_ppm: 0,
                order_bytes: u32::MAX,
                start_s: 0,
            };
            fleet.insert(host).expect("a usual host");
        }
        fleet
    }

    fn request(milli_cpu: u32) -> Request {
        Request::new(milli_cpu, 1_024, Gpus::Whole { count: 1, vram_mib: 0 })
    }

    #[test]
    fn a_gang_of_equals_that_is_one_short_is_not_tried_in_every_order() {
        let mut fleet = fleet(63);
        assert!(fleet.place_gang(&Gang { id: 0, members: vec![request(1_000); 64] }).is_none());
        assert_eq!(fleet.decisions, 64);
    }

    #[test]
    fn members_with_the_same_rules_are_equals_and_others_are_not() {
        let mut fleet = fleet(63);
        let guest = |owner| super::super::Guest { owner, ..Default::default() };
        let mut of = |owner| Request { guest: fleet.invite(guest(owner)), ..request(1_000) };
        let (one, same, other) = (of(1), of(1), of(2));
        assert!(fleet.guests.are_alike(&one, &same) && !fleet.guests.are_alike(&one, &other));
    }

    #[test]
    fn gangs_that_find_no_place_alone_are_not_weighed_against_others() {
        let mut fleet = fleet(63);
        let gangs: Vec<Gang> = (0..4).map(|id| Gang { id, members: vec![request(1_000); 64] }).collect();
        assert!(fleet.place_batch(&gangs).iter().all(Option::is_none));
        assert_eq!(fleet.decisions, 4 * 64);
    }

    #[test]
    fn gangs_are_weighed_against_one_another_only_for_so_long() {
        let mut fleet = fleet(320);
        let different = |id: u64| (0..64).map(move |member| request(1_000 + 64 * id as u32 + member));
        let gangs: Vec<Gang> = (0..5).map(|id| Gang { id, members: different(id).collect() }).collect();
        let places = fleet.place_batch(&gangs);
        assert!(places.iter().all(Option::is_some));
        assert!(fleet.decisions < DECISIONS_MAX + 2 * 320, "{}", fleet.decisions);
    }
}
