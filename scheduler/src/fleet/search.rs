//! Where a few gangs go, looked for place by place: finds what no order of turns does, such as one that goes to a
//! dearer device so that two share a cheaper one.

use super::{
    Fleet,
    batch::{Alone, Gang, Places, Tried, cost, free},
};

/// Places that are tried before the search ends with the best that it has found.
const DECISIONS_MAX: usize = 2_048;
/// Places that are tried for a member, the cheapest.
const OPTIONS_MAX: usize = 4;

/// A search among all that a few gangs may do.
struct Search<'a> {
    gangs: &'a [Gang],
    alone: &'a [Option<Alone>],
    /// The gangs that find a place alone, in the order of their turns.
    order: &'a [usize],
    /// Where gangs are on the way.
    places: Vec<Option<Places>>,
    best: Tried,
}

impl Fleet {
    /// The best that is found, or what was known before; nothing is occupied then.
    pub(super) fn search(
        &mut self,
        gangs: &[Gang],
        alone: &[Option<Alone>],
        order: &[usize],
        best: Tried,
    ) -> Tried {
        self.decisions = 0;
        let mut search = Search { gangs, alone, order, places: vec![None; gangs.len()], best };
        self.search_turn(&mut search, 0);
        search.best
    }

    /// A gang goes to each of its places in turn, and at last it waits. What a place costs may be negative, where it
    /// uses up what would be stranded, so that nothing is given up because it is dear so far.
    fn search_turn(&mut self, search: &mut Search<'_>, turn: usize) {
        let Some(at) = search.order.get(turn).copied() else { return self.search_end(search) };
        self.search_member(search, turn, &mut Places::new());
        search.places[at] = None;
        if self.decisions < DECISIONS_MAX {
            self.search_turn(search, turn + 1);
        }
    }

    fn search_member(&mut self, search: &mut Search<'_>, turn: usize, before: &mut Places) {
        let at = search.order[turn];
        let gang = &search.gangs[at];
        let Some(member) = gang.members.get(before.len()) else {
            search.places[at] = Some(before.clone());
            return self.search_turn(search, turn + 1);
        };
        for choice in self.options(member, gang.id, OPTIONS_MAX) {
            if self.decisions >= DECISIONS_MAX {
                return;
            }
            self.decisions += 1;
            if self.place(choice.host, &choice.request, &choice.devices) {
                before.push(choice.clone());
                self.search_member(search, turn, before);
                before.pop();
                self.release(choice.host, &choice.request, &choice.devices);
            }
        }
    }

    /// Those that wait and fit all the same go where it is cheapest.
    fn search_end(&mut self, search: &mut Search<'_>) {
        let mut places = search.places.clone();
        let waits = |at: &&usize| search.places[**at].is_none();
        for at in search.order.iter().filter(waits) {
            places[*at] = self.place_wished(&search.gangs[*at], &free(&search.gangs[*at]));
        }
        for at in search.order.iter().filter(waits) {
            places[*at].iter().for_each(|late| self.release_gang(late));
        }
        search.best.take_cheaper(Tried { cost: cost(&places, search.alone), places });
    }
}
