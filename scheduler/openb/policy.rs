//! Policies by name.

use crate::{
    baselines::{self, Policy},
    planner::Planner,
    trace::{Host, Placed, Pod},
};

/// Whoever places pods.
pub enum Runner<'a> {
    Baseline(baselines::Run<'a>),
    Planner(Box<Planner>),
}

impl<'a> Runner<'a> {
    pub fn named(name: &str, hosts: &'a [Host], history: &[Pod], seed: u64) -> Option<Self> {
        if name == "nave" {
            return Planner::new(hosts, history).map(|planner| Self::Planner(Box::new(planner)));
        }
        let policy = Policy::named(name, history, seed)?;
        Some(Self::Baseline(baselines::Run::new(policy, hosts)))
    }

    pub fn place(&mut self, at: usize, pod: &Pod) -> Option<Placed> {
        match self {
            Self::Baseline(run) => run.place(at, pod),
            Self::Planner(planner) => planner.place(at, pod),
        }
    }
}
