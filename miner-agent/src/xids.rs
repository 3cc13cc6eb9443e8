//! Errors that the drivers of GPUs report: a prover hears of them, and reports tell them.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nave_domain::host::Device;
use nave_sdk::wire::host::{XIDS_MAX, XidReport};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::Command,
    sync::Notify,
    task::JoinSet,
};

use crate::{command, config::Prover};

/// Longest line of a prover, in bytes.
const LINE_MAX: u64 = 4 << 10;
/// Time until a prover is started again that has ended.
const AGAIN: Duration = Duration::from_secs(60);

/// What is to be told.
#[derive(Debug, Clone, Default)]
pub struct Xids {
    untold: Arc<Mutex<Vec<XidReport>>>,
    news: Arc<Notify>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Xid(XidReport),
    Error(String),
}

impl Xids {
    /// What no report has told yet of the devices that are offered, oldest first.
    #[must_use]
    pub fn untold(&self, offered: &[Device]) -> Vec<XidReport> {
        let mut untold = self.lock();
        untold.retain(|xid| offered.iter().any(|device| device.uuid == xid.device));
        untold.clone()
    }

    /// A report with these was answered.
    pub fn told(&self, told: &[XidReport]) {
        self.lock().retain(|xid| !told.contains(xid));
    }

    /// Waits until there is something to tell.
    pub async fn come(&self) {
        self.news.notified().await;
    }

    /// Takes one in. One that waits already is told once, and what is too much is left out: it says the same of the
    /// same device.
    fn take(&self, xid: XidReport) {
        let mut untold = self.lock();
        if untold.len() < XIDS_MAX && !untold.contains(&xid) {
            untold.push(xid);
            self.news.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<XidReport>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a prover listen, again and again, until what is returned is dropped; not where there are no GPUs.
    #[must_use]
    pub fn listen(&self, devices: &[Device], prover: &Prover) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        if devices.iter().any(|device| !device.simulated) {
            let (xids, program) = (self.clone(), prover.program.clone());
            tasks.spawn(async move {
                loop {
                    if let Err(error) = xids.follow(&program).await {
                        tracing::debug!(
                            error = format!("{error:#}"),
                            "errors of GPUs are not heard; trying again"
                        );
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            });
        }
        tasks
    }

    async fn follow(&self, prover: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(prover);
        command.arg("xids").env_clear().env("PATH", command::PATH).env("LC_ALL", "C").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("run {}", prover.display()))?;
        self.read(child.stdout.take().context("the prover has no output")?).await
    }

    async fn read(&self, said: impl AsyncRead + Unpin) -> anyhow::Result<()> {
        let mut said = BufReader::new(said);
        loop {
            let mut line = Vec::new();
            let read = (&mut said).take(LINE_MAX).read_until(b'\n', &mut line).await;
            if read.context("listen to a prover")? == 0 {
                bail!("the prover has ended");
            }
            match serde_json::from_slice(&line).context("read what a prover says")? {
                Said::Xid(xid) => self.take(xid),
                Said::Error(why) => bail!("{why}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        serde_json::from_str(r#"{"uuid":"GPU-1","model":"","vram":1,"driver":""}"#).expect("a device")
    }

    fn xid(code: u32) -> XidReport {
        XidReport { code, device: "GPU-1".into() }
    }

    #[tokio::test]
    async fn what_a_prover_says_is_told_once_it_is_answered_and_no_sooner_forgotten() {
        let xids = Xids::default();
        let said = concat!(
            r#"{"xid":{"code":79,"device":"GPU-1"}}"#,
            "\n",
            r#"{"xid":{"code":79,"device":"GPU-1"}}"#,
            "\n",
            r#"{"xid":{"code":31,"device":"GPU-1"}}"#,
            "\n",
            r#"{"error":"NVML: the GPU is lost"}"#,
            "\n"
        );
        let ended = xids.read(said.as_bytes()).await.expect_err("it says so");
        assert_eq!(ended.to_string(), "NVML: the GPU is lost");
        xids.come().await;
        let offered = [device()];
        assert_eq!(xids.untold(&offered), [xid(79), xid(31)]);
        assert_eq!(xids.untold(&offered).len(), 2, "the report was not answered");
        xids.told(&[xid(79)]);
        assert_eq!(xids.untold(&offered), [xid(31)]);
        assert_eq!(xids.untold(&[]), [], "nobody is told of a GPU that is not offered");
    }

    #[test]
    fn a_storm_of_errors_is_no_larger_than_a_report_may_be() {
        let xids = Xids::default();
        (0..1_000).for_each(|code| xids.take(xid(code)));
        assert_eq!(xids.untold(&[device()]).len(), XIDS_MAX);
    }
}
