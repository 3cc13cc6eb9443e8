//! Several requests at once: gangs, which are placed whole or not at all, and batches, where
//! it matters who comes first when gangs want the same hosts.

use std::cmp::Reverse;

use super::{Choice, Fleet, Handle, request::Request};

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
type Wish = Vec<Option<(Handle, Vec<u8>)>>;

/// Gangs that are weighed against one another.
const WEIGHED_MAX: usize = 5;
/// Places that are tried for a member, besides the cheapest.
const OPTIONS_MAX: usize = 16;
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
        self.place_wished(gang, &vec![None; gang.members.len()])
    }

    /// Gives back what a gang occupied.
    pub fn release_gang(&mut self, gang: &Gang, places: &Places) {
        for (member, choice) in gang.members.iter().zip(places) {
            self.release(choice.host, member, &choice.devices);
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
        let alone: Vec<Option<Alone>> = gangs.iter().map(|gang| self.alone(gang)).collect();
        let sum: i64 = alone.iter().flatten().map(|alone| alone.cost).sum();
        let enough = if hurry { sum.saturating_add(sum / 100 * SPARE_PERCENT) } else { i64::MIN };
        let mut order: Vec<usize> = (0..gangs.len()).collect();
        order.sort_by_key(|at| Reverse(gangs[*at].members.iter().map(hardness).max()));
        let mut best = Tried { cost: i64::MAX, places: Vec::new() };
        for order in orders(&order) {
            if best.cost > enough {
                let turns = order.iter().map(|at| (*at, free(&gangs[*at]))).collect();
                best.take_cheaper(self.try_out(gangs, turns, &alone));
            }
        }
        for _ in 0..PASSES {
            let before = best.cost;
            for at in 0..gangs.len() {
                if best.cost > enough {
                    self.try_elsewhere(gangs, at, &order, &alone, &mut best);
                }
            }
            if best.cost == before {
                break;
            }
        }
        for (gang, places) in gangs.iter().zip(&best.places) {
            for (member, choice) in gang.members.iter().zip(places.iter().flatten()) {
                self.place(choice.host, member, &choice.devices);
            }
        }
        best.places
    }

    fn alone(&mut self, gang: &Gang) -> Option<Alone> {
        let places = self.place_gang(gang)?;
        self.release_gang(gang, &places);
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
        for (gang, places) in gangs.iter().zip(&places) {
            places.iter().for_each(|places| self.release_gang(gang, places));
        }
        Tried { cost: cost(&places, alone), places }
    }

    /// Occupies places for all members, those that are wished and otherwise the cheapest.
    fn place_wished(&mut self, gang: &Gang, wish: &Wish) -> Option<Places> {
        // After those whose place is decided the hardest: what suffices for them is scarcest.
        let mut order: Vec<usize> = (0..gang.members.len()).collect();
        order.sort_by_key(|at| (wish[*at].is_none(), Reverse(hardness(&gang.members[*at]))));
        // Whoever finds no place goes first in the next attempt.
        for _ in 0..gang.members.len() {
            match self.place_ordered(gang, wish, &order) {
                Ok(places) => return Some(places),
                Err(0) => return None,
                Err(without) => order[..=without].rotate_right(1),
            }
        }
        None
    }

    /// The places of all members, or where in the order the first one is that has none.
    fn place_ordered(&mut self, gang: &Gang, wish: &Wish, order: &[usize]) -> Result<Places, usize> {
        let mut placed: Vec<(usize, Choice)> = Vec::new();
        for (turn, at) in order.iter().enumerate() {
            let member = &gang.members[*at];
            let choice = match &wish[*at] {
                Some((host, devices)) => self.choice(*host, member, devices, gang.id),
                None => self.decide_for(member, Some(gang.id)),
            };
            match choice {
                Some(choice) if self.place(choice.host, member, &choice.devices) => {
                    placed.push((*at, choice))
                }
                Some(_) | None => {
                    for (at, choice) in placed {
                        self.release(choice.host, &gang.members[at], &choice.devices);
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
struct Tried {
    cost: i64,
    places: Vec<Option<Places>>,
}

impl Tried {
    fn take_cheaper(&mut self, other: Self) {
        if other.cost < self.cost {
            *self = other;
        }
    }
}

/// What a gang would cost if it had the fleet for itself.
struct Alone {
    cost: i64,
    hourly: i64,
}

/// What a batch costs, waiting included.
fn cost(places: &[Option<Places>], alone: &[Option<Alone>]) -> i64 {
    let of = |(places, alone): (&Option<Places>, &Option<Alone>)| match places {
        Some(places) => places.iter().map(|choice| choice.cost).sum(),
        None => alone.as_ref().map_or(0, |alone| WAIT_PRICES.saturating_mul(alone.hourly)),
    };
    places.iter().zip(alone).map(of).sum()
}

/// All members anywhere.
fn free(gang: &Gang) -> Wish {
    vec![None; gang.members.len()]
}

/// All members where they are.
fn wished(places: &Places) -> Wish {
    places.iter().map(|choice| Some((choice.host, choice.devices.clone()))).collect()
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
