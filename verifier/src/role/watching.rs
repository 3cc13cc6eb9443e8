//! Testing again hosts that have proven their claims: whatever is due at the same moment is written together, since in a
//! window that is a whole market.

use std::collections::BTreeMap;

use anyhow::Context as _;
use nave_domain::{
    ChallengeId, HostId, LeaseId, Millis,
    host::Inventory,
    verdict::{Cause, Kind},
};
use nave_proof::Task;
use nave_store::{Drawing, Watch, WatchedHost};
use serde_json::Value;
use uuid::Uuid;

use super::{PAGE, Verifier, challenge, is_news, nonce, passable, random};
use crate::{
    draw,
    schedule::{Action, Probe, plan},
};

/// What is to be done about many hosts, by what it is.
#[derive(Default)]
struct Rounds {
    retests: BTreeMap<Cause, Vec<(HostId, u64)>>,
    retests_at: Vec<(HostId, Millis)>,
    hidden: Vec<HostId>,
    probes_at: Vec<(LeaseId, Millis)>,
    probes: Vec<Probe>,
}

impl Verifier {
    /// Tests hosts again that have proven their claims, where it is time.
    pub(super) async fn keep_watch(&self) -> anyhow::Result<()> {
        let watch =
            self.store.hosts_watched(&self.config.enforced).await.context("load hosts that take jobs")?;
        let mut drawn = Ok(());
        let mut number = || random().map(u64::from_le_bytes).map_err(|error| drawn = Err(error)).unwrap_or(0);
        let actions = plan(&watch, &self.rules(), &self.config.means, &mut number);
        drawn?;
        let mut rounds = Rounds::default();
        for action in actions {
            passable(match action {
                Action::RetestAt(host, up) => {
                    rounds.retests_at.push((host, up));
                    Ok(())
                }
                Action::Retest(host, seen, cause) => {
                    rounds.retests.entry(cause).or_default().push((host, seen));
                    Ok(())
                }
                Action::Hidden(host) => {
                    rounds.hidden.push(host);
                    Ok(())
                }
                Action::ProbeAt(lease, up) => {
                    rounds.probes_at.push((lease, up));
                    Ok(())
                }
                Action::Probe(probe) => {
                    rounds.probes.push(probe);
                    Ok(())
                }
                Action::Demand(host, seen) => self.demand(host, seen).await,
                Action::PlanWindow(up) => {
                    self.store.window_plan(Uuid::now_v7(), up).await.map_err(Into::into)
                }
                Action::ReplaceWindow(missed, up) => self.replace_window(missed, up).await,
                Action::OpenWindow(window) => self.open_window(window).await,
            })?;
        }
        self.carry_out(&watch, &rounds).await?;
        match watch.opened {
            Some(opened) => self.store.window_done(opened.window).await.context("end a window"),
            None => Ok(()),
        }
    }

    async fn carry_out(&self, watch: &Watch, rounds: &Rounds) -> anyhow::Result<()> {
        // Those of a window are to begin at the same moment, so they come first.
        for (cause, hosts) in &rounds.retests {
            for hosts in hosts.chunks(PAGE) {
                passable(self.retest(hosts, *cause).await)?;
            }
        }
        let hosts: BTreeMap<HostId, &WatchedHost> =
            watch.hosts.iter().map(|watched| (watched.host, watched)).collect();
        for probes in rounds.probes.chunks(PAGE) {
            passable(self.probe(&hosts, probes).await)?;
        }
        for hosts in rounds.retests_at.chunks(PAGE) {
            self.store.hosts_retest_at(hosts).await.context("set when hosts are tested again")?;
        }
        for leases in rounds.probes_at.chunks(PAGE) {
            self.store.leases_probe_at(leases).await.context("set when GPUs are tested beside jobs")?;
        }
        for hosts in rounds.hidden.chunks(PAGE) {
            self.store.hosts_hidden(hosts).await.context("remember who shows no GPU")?;
        }
        Ok(())
    }

    async fn replace_window(&self, missed: Uuid, up: Millis) -> anyhow::Result<()> {
        if is_news(self.store.window_replace(missed, Uuid::now_v7(), up).await)? {
            tracing::info!(window.id = %missed, "no verifier was there to draw hosts into a window; another one opens soon");
        }
        Ok(())
    }

    async fn retest(&self, hosts: &[(HostId, u64)], cause: Cause) -> anyhow::Result<()> {
        for host in self.store.suites_begin(hosts, cause).await.context("test hosts again")? {
            tracing::info!(host.id = %host, cause = cause.as_str(), "a host is to prove its claims again");
        }
        Ok(())
    }

    async fn demand(&self, host: HostId, seen: u64) -> anyhow::Result<()> {
        if is_news(self.store.suite_demand(host, seen).await)? {
            tracing::info!(host.id = %host, "a host has not shown its GPUs beside its jobs for long; it gets no further ones before it has");
        }
        Ok(())
    }

    async fn open_window(&self, window: Uuid) -> anyhow::Result<()> {
        // Nobody can know it before the window opens.
        let beacon = nonce()?.to_string();
        if is_news(self.store.window_open(window, &beacon).await)? {
            tracing::info!(window.id = %window, "all hosts with GPUs are tested at once");
        }
        Ok(())
    }

    /// Tests GPUs beside the jobs of their hosts.
    async fn probe(&self, hosts: &BTreeMap<HostId, &WatchedHost>, probes: &[Probe]) -> anyhow::Result<()> {
        let ids: Vec<HostId> = probes.iter().map(|probe| probe.host).collect();
        let mut whole = self.store.devices_passed(&ids).await.context("load what GPUs have shown")?;
        let mut tests = Vec::new();
        for probe in probes {
            let Some(watched) = hosts.get(&probe.host) else { continue };
            let shown = whole.remove(&probe.host);
            match draw::task_beside_jobs(&probe.devices, watched.claims.memory, shown) {
                Ok(task) => tests.push(Test::of(probe, &watched.claims, task)?),
                Err(why) => {
                    tracing::debug!(host.id = %probe.host, why, "GPUs cannot be tested beside jobs");
                }
            }
        }
        let shadow = self.rules().is_shadow(Kind::Devices);
        let drawings: Vec<Drawing<'_>> = tests.iter().map(|test| test.drawing(shadow)).collect();
        self.store.challenges_draw_beside(&drawings).await.context("draw tests beside leases")?;
        Ok(())
    }
}

/// A challenge that is to be drawn beside a lease.
struct Test<'a> {
    probe: &'a Probe,
    claims: &'a Inventory,
    challenge: ChallengeId,
    body: Value,
}

impl<'a> Test<'a> {
    fn of(probe: &'a Probe, claims: &'a Inventory, task: Task) -> anyhow::Result<Self> {
        let challenge = challenge(probe.host, task, probe.window.as_ref())?;
        let body = serde_json::to_value(&challenge).context("write a challenge as JSON")?;
        Ok(Self { probe, claims, challenge: challenge.challenge, body })
    }

    fn drawing(&self, shadow: bool) -> Drawing<'_> {
        Drawing {
            host: self.probe.host,
            challenge: self.challenge,
            kind: Kind::Devices,
            cause: self.probe.cause,
            body: &self.body,
            claims: self.claims,
            shadow,
            window: self.probe.window.as_ref().map(|window| window.window),
            lease: Some(self.probe.lease),
        }
    }
}
