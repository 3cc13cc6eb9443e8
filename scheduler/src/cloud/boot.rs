//! What a rented machine boots with: `boot.sh`, below lines that say what it joins with.

use nave_clouds::Secret;

/// The script without what it joins with.
const SCRIPT: &str = include_str!("boot.sh");
/// Its first line, which stays the first.
const FIRST: &str = "#!/bin/sh\n";

/// Programs that machines fetch where their image does not have them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programs {
    /// The agent.
    pub agent: Program,
    /// What the agent asks about GPUs.
    pub prover: Program,
}

/// Where a program is, and what it must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Where it is fetched from; empty where images have it.
    pub url: String,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
}

impl Program {
    /// Refuses what does not belong into a script.
    ///
    /// # Errors
    /// A sentence that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        let is_web = self.url.starts_with("https://") || self.url.starts_with("http://");
        let is_digest = self.sha256.len() == 64 && self.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        if self == &Self::default() || is_web && is_digest && quoted(&self.url).is_some() {
            return Ok(());
        }
        Err("a program has a url without quotes and spaces, and a sha256 of 64 hexadecimal digits".into())
    }
}

/// The script that makes a host of a machine. It runs wherever there is a POSIX shell.
///
/// # Errors
/// When a text holds what no ticket, URL or digest does: nothing else gets into the script.
pub fn script(ticket: &str, programs: &Programs) -> Result<Secret, String> {
    let texts = [
        ("ticket", ticket),
        ("agent_url", &programs.agent.url),
        ("agent_sha256", &programs.agent.sha256),
        ("prover_url", &programs.prover.url),
        ("prover_sha256", &programs.prover.sha256),
    ];
    let mut text = FIRST.to_owned();
    for (name, value) in texts {
        let value = quoted(value).ok_or_else(|| format!("{name}: it holds what does not belong there"))?;
        text.push_str(&format!("{name}={value}\n"));
    }
    text.push_str(SCRIPT.strip_prefix(FIRST).unwrap_or(SCRIPT));
    Ok(Secret::new(text))
}

/// A text between quotes that end where it ends, whatever shell reads it.
fn quoted(text: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?&=%+,@".contains(&byte);
    text.bytes().all(is_plain).then(|| format!("'{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Programs {
        let agent = Program { url: "https://files.example/miner-agent".into(), sha256: "ab".repeat(32) };
        Programs { agent, prover: Program::default() }
    }

    #[test]
    fn it_says_what_to_join_with_before_anything_runs() {
        let script = script("nave1.abc-_.0123", &programs()).expect("plain");
        let lines: Vec<&str> = script.reveal().lines().take(6).collect();
        let sha = format!("agent_sha256='{}'", "ab".repeat(32));
        let expected = [
            "#!/bin/sh",
            "ticket='nave1.abc-_.0123'",
            "agent_url='https://files.example/miner-agent'",
            &sha,
            "prover_url=''",
            "prover_sha256=''",
        ];
        assert_eq!(lines, expected);
        assert_eq!(script.reveal().matches("#!/bin/sh").count(), 1);
    }

    #[test]
    fn no_text_gets_out_of_its_quotes() {
        for text in ["a'b", "a\nb", "$(reboot)", "`reboot`", "a b", "a\\", "a\"b", "é", "a;b"] {
            assert!(script(text, &programs()).is_err(), "{text}");
            let program = Program { url: format!("https://{text}"), sha256: "ab".repeat(32) };
            assert!(program.check().is_err(), "{text}");
        }
    }

    #[test]
    fn a_program_is_pinned_or_not_fetched() {
        assert!(Program::default().check().is_ok());
        assert!(programs().agent.check().is_ok());
        let unpinned = Program { sha256: String::new(), ..programs().agent };
        assert!(unpinned.check().is_err());
    }
}
