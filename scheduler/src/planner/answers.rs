//! What jobs are told that no host takes, from one look to the next: only hosts that have changed are asked again.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use nave_domain::{HostId, rate::Rate};
use nave_store::QueuedJob;

use super::{
    hosts::{Changes, Supplies},
    like::Like,
    market::Refusal,
    money::pays,
};
use crate::{
    fit::{Lack, Names, Supply},
    wait::{Asked, Near, lacking, too_dear},
};

/// Answers beyond which those that nobody was given are forgotten, and changes of hosts for all answers beyond which these
/// are found anew.
const ANSWERS_MAX: usize = 4_096;
const ASKED_MAX: usize = 1 << 18;

/// The answers that are known.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    known: RefCell<BTreeMap<Like, Answer>>,
    look: u64,
}

/// How hosts do for jobs that are alike, when they are empty.
#[derive(Debug, Clone)]
struct Answer {
    job: QueuedJob,
    /// The one that comes nearest: where that would do all others do not matter, and may not have been asked.
    nearest: Option<Near>,
    /// What those lack that would do for no wish, and how many of them.
    lacks: BTreeMap<Lack, usize>,
    look: u64,
}

impl Answers {
    /// Takes over what has changed; `before` are hosts as they were, and `empty` as they are now, without anybody on them. None
    /// of these exceeds the rates of `dearest`.
    pub fn follow(
        &mut self,
        changes: &Changes,
        before: &[(HostId, Arc<Supply>)],
        names: &Names,
        empty: &Supplies,
        dearest: Rate,
    ) {
        let known = self.known.get_mut();
        // Whoever pays any rate stands for all who do, until there is one that they do not pay.
        known.retain(|like, answer| !like.pays_any_rate() || pays(&answer.job, dearest));
        if known.len() > ANSWERS_MAX {
            known.retain(|_, answer| answer.look == self.look);
        }
        self.look += 1;
        if known.len() * (before.len() + changes.offered.len()) > ASKED_MAX {
            return known.clear();
        }
        let changed = |id: &HostId| changes.gone.contains(id) || changes.offered.contains(id);
        known.retain(|_, answer| answer.nearest.as_ref().is_none_or(|near| !changed(&near.host)));
        for answer in known.values_mut().filter(|answer| !answer.is_met()) {
            let job = answer.job.clone();
            let asked = Asked::new(&job, names);
            for (id, supply) in before {
                if let Err(lack) = near(&asked, *id, supply) {
                    answer.lacks.entry(lack).and_modify(|hosts| *hosts = hosts.saturating_sub(1));
                }
            }
            for id in &changes.offered {
                empty.get(id).iter().for_each(|supply| answer.note(near(&asked, *id, supply)));
            }
            answer.lacks.retain(|_, hosts| *hosts > 0);
        }
    }

    /// Why no host would take a job even if nobody were on it; `None` where one would.
    pub fn why(&self, like: Like, job: &QueuedJob, names: &Names, empty: &Supplies) -> Option<Refusal> {
        let mut known = self.known.borrow_mut();
        let answer = known.entry(like).or_insert_with(|| Answer::new(job, names, empty));
        answer.look = self.look;
        let Some(nearest) = &answer.nearest else { return Some(Refusal::Wait(lacking(&answer.lacks))) };
        if answer.is_met() {
            return None;
        }
        let supply = empty.get(&nearest.host)?;
        Some(match nearest.without.is_empty() {
            true => Refusal::Fail(too_dear(job, supply)),
            false => Refusal::Wait(Asked::new(job, names).reason(nearest, supply)),
        })
    }
}

impl Answer {
    fn new(job: &QueuedJob, names: &Names, empty: &Supplies) -> Self {
        let mut answer = Self { job: job.clone(), nearest: None, lacks: BTreeMap::new(), look: 0 };
        let asked = Asked::new(job, names);
        for (id, supply) in empty {
            answer.note(near(&asked, *id, supply));
            if answer.is_met() {
                break;
            }
        }
        answer
    }

    fn is_met(&self) -> bool {
        self.nearest.as_ref().is_some_and(|near| near.without.is_empty() && !near.is_unpaid)
    }

    fn note(&mut self, found: Result<Near, Lack>) {
        match found {
            Ok(near) if self.nearest.as_ref().is_none_or(|nearest| near < *nearest) => {
                self.nearest = Some(near)
            }
            Ok(_) => {}
            Err(lack) => *self.lacks.entry(lack).or_default() += 1,
        }
    }
}

fn near(asked: &Asked<'_>, id: HostId, supply: &Supply) -> Result<Near, Lack> {
    asked.near(id, supply, |rate| pays(asked.job, rate))
}
