//! Lets the kernel forward packets, and puts its settings back when nobody needs that any more.
//!
//! The settings belong to the whole machine, and several agents may live on it. Each leaves
//! a mark while it needs them; what they were before the first changed them is written
//! beside the marks. All of it is gone with the machine's next start, as the changes are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    config::BridgePrefix,
    files::{self, Keep},
};

const IPV4: &str = "net/ipv4/ip_forward";
const IPV6: &str = "net/ipv6/conf/all/forwarding";

/// The settings of a machine.
#[derive(Debug, Clone)]
pub struct Forwarding {
    settings: PathBuf,
    marks: PathBuf,
}

impl Default for Forwarding {
    fn default() -> Self {
        Self { settings: "/proc/sys".into(), marks: "/run/nave-forwarding".into() }
    }
}

/// A setting and what it was, in the order in which they were changed.
type Before = Vec<(String, String)>;

impl Forwarding {
    /// Turns forwarding on where it is off, for the agent with these bridges.
    ///
    /// A machine that forwards IPv6 stops listening to its routers, unless the
    /// interface says otherwise; so first those that listen are told to go on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn need(&self, who: &BridgePrefix) -> anyhow::Result<()> {
        let mut changes: Before = Vec::new();
        if self.read(IPV4)? != "1" {
            changes.push((IPV4.into(), "1".into()));
        }
        if self.read(IPV6).is_ok_and(|now| now != "1") {
            changes.extend(self.listeners()?.into_iter().map(|path| (path, "2".into())));
            changes.push((IPV6.into(), "1".into()));
        }
        files::ensure_dir(&self.marks)?;
        let mark = self.mark(who);
        if !mark.exists() {
            fs::write(&mark, "").with_context(|| format!("write {}", mark.display()))?;
        }
        if changes.is_empty() {
            return Ok(());
        }
        let mut before = self.before()?;
        for (path, _) in &changes {
            if !before.iter().any(|(known, _)| known == path) {
                before.push((path.clone(), self.read(path)?));
            }
        }
        files::write_json(&self.before_path(), &before, Keep::Process)?;
        changes.iter().try_for_each(|(path, value)| self.write(path, value))
    }

    /// The agent with these bridges needs it no more. The last one puts the settings back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn leave(&self, who: &BridgePrefix) -> anyhow::Result<()> {
        files::remove(&self.mark(who))?;
        let others = fs::read_dir(&self.marks).into_iter().flatten().flatten();
        if others.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("needed-by-")) {
            return Ok(());
        }
        // The last change first, so that IPv6 listens to routers again when it does not forward.
        for (path, value) in self.before()?.iter().rev() {
            self.write(path, value)?;
        }
        files::remove(&self.before_path())
    }

    /// Interfaces that listen to routers as long as IPv6 is not forwarded.
    fn listeners(&self) -> anyhow::Result<Vec<String>> {
        let dir = self.settings.join("net/ipv6/conf");
        let mut found = Vec::new();
        for interface in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?.flatten() {
            let path = format!("net/ipv6/conf/{}/accept_ra", interface.file_name().to_string_lossy());
            if self.read(&path).is_ok_and(|value| value == "1") {
                found.push(path);
            }
        }
        Ok(found)
    }

    fn before(&self) -> anyhow::Result<Before> {
        Ok(files::read_json(&self.before_path())?.unwrap_or_default())
    }

    fn before_path(&self) -> PathBuf {
        self.marks.join("before.json")
    }

    fn mark(&self, who: &BridgePrefix) -> PathBuf {
        self.marks.join(format!("needed-by-{}", who.as_str()))
    }

    fn read(&self, path: &str) -> anyhow::Result<String> {
        let path = self.settings.join(path);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// An interface may have gone meanwhile, and its settings with it.
    fn write(&self, path: &str, value: &str) -> anyhow::Result<()> {
        let path: &Path = &self.settings.join(path);
        if !path.exists() {
            return Ok(());
        }
        fs::write(path, value).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine {
        dir: tempfile::TempDir,
        forwarding: Forwarding,
    }

    impl Machine {
        fn with(ipv4: &str, ipv6: &str) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let forwarding = Forwarding { settings: dir.path().join("sys"), marks: dir.path().join("marks") };
            let machine = Self { dir, forwarding };
            for (path, value) in [(IPV4, ipv4), (IPV6, ipv6), ("net/ipv6/conf/eth0/accept_ra", "1")] {
                let path = machine.dir.path().join("sys").join(path);
                fs::create_dir_all(path.parent().expect("a parent")).expect("made");
                fs::write(path, format!("{value}\n")).expect("written");
            }
            machine
        }

        fn settings(&self) -> [String; 3] {
            [IPV4, IPV6, "net/ipv6/conf/eth0/accept_ra"].map(|path| self.forwarding.read(path).expect("read"))
        }
    }

    fn agent(letters: &str) -> BridgePrefix {
        letters.parse().expect("a prefix")
    }

    #[test]
    fn the_last_agent_that_leaves_puts_the_settings_back() {
        let machine = Machine::with("0", "0");
        machine.forwarding.need(&agent("nva")).expect("on");
        machine.forwarding.need(&agent("nvb")).expect("on");
        assert_eq!(machine.settings(), ["1", "1", "2"]);
        machine.forwarding.leave(&agent("nva")).expect("left");
        assert_eq!(machine.settings(), ["1", "1", "2"], "the other one still needs it");
        machine.forwarding.leave(&agent("nvb")).expect("left");
        assert_eq!(machine.settings(), ["0", "0", "1"]);
        machine.forwarding.leave(&agent("nvb")).expect("once more");
    }

    #[test]
    fn what_was_on_before_stays_on() {
        let machine = Machine::with("1", "1");
        machine.forwarding.need(&agent("nva")).expect("on");
        machine.forwarding.leave(&agent("nva")).expect("left");
        assert_eq!(machine.settings(), ["1", "1", "1"]);
    }
}
