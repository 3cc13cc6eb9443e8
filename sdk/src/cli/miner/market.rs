//! Which market this is: its key is pinned, or remembered when it is seen first.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use nave_domain::Timestamp;
use nave_sdk::wire::enrol::{Market, PublicKey};
use serde::{Deserialize, Serialize};

use super::super::{failure::Failure, output};

/// The file, beside the configuration.
const FILE: &str = "markets.toml";

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// By URL.
    #[serde(default)]
    markets: BTreeMap<String, Pin>,
}

/// What a market has shown before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pin {
    market_key: PublicKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    release_key: Option<PublicKey>,
    since: Timestamp,
}

/// Keys that the person at the command line has given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given {
    pub market_key: Option<PublicKey>,
    pub release_key: Option<PublicKey>,
    /// Whether the release key is about to be passed on.
    pub for_ticket: bool,
}

/// What becomes of a market's keys.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// What to remember, where that is new.
    remember: Option<Pin>,
    /// What to tell.
    notices: Vec<String>,
}

/// Compares what the market at `url` shows with what was given and seen before,
/// and remembers what is new.
///
/// # Errors
/// [`Failure`] when a key is another one.
pub fn recognise(config: Option<&Path>, url: &str, given: Given, seen: &Market) -> Result<(), Failure> {
    let (url, path) = (url.trim_end_matches('/'), config.map(|config| config.with_file_name(FILE)));
    let mut known = path.as_deref().map(read).transpose()?.unwrap_or_default();
    let verdict = judge(known.markets.get(url), url, given, seen, output::now())?;
    for notice in &verdict.notices {
        output::say(notice);
    }
    let Some(pin) = verdict.remember else { return Ok(()) };
    known.markets.insert(url.to_owned(), pin);
    match path.as_deref().map(|path| write(path, &known).map(|()| path)) {
        Some(Ok(path)) if !verdict.notices.is_empty() => {
            output::say(&format!("remembered in {}", path.display()));
        }
        Some(Ok(_)) => {}
        Some(Err(error)) => output::say(&format!("the market's key could not be remembered: {error}")),
        None => output::say("the market's key could not be remembered: this user has no home directory"),
    }
    Ok(())
}

fn judge(
    pin: Option<&Pin>,
    url: &str,
    given: Given,
    seen: &Market,
    now: Timestamp,
) -> Result<Verdict, Failure> {
    let pin = market_key(pin, url, given, seen)?;
    let (release, mut notices) = (release_key(pin, url, given, seen)?, Vec::new());
    let new_release = release.filter(|_| pin.is_none_or(|pin| pin.release_key != release));
    if pin.is_none() && given.market_key.is_none() {
        notices.push(format!("this is the first time at {url}; its market key is {}", seen.market_key));
    }
    if let Some(key) = new_release.filter(|_| given.release_key.is_none()) {
        notices.push(format!("what signs upgrades of its agents is the release key {key}"));
    }
    if !notices.is_empty() {
        notices
            .push("compare this with what its operator says; from now on another key is refused".to_owned());
    }
    let remember = (pin.is_none() || new_release.is_some()).then(|| Pin {
        market_key: seen.market_key,
        release_key: release.or(pin.and_then(|pin| pin.release_key)),
        since: now,
    });
    Ok(Verdict { remember, notices })
}

/// What was seen of this very market before.
fn market_key<'a>(
    pin: Option<&'a Pin>,
    url: &str,
    given: Given,
    seen: &Market,
) -> Result<Option<&'a Pin>, Failure> {
    let attempted = format!("trust the market at {url}");
    if let Some(key) = given.market_key {
        if key != seen.market_key {
            let detail = format!("its key is {}, not the {key} given with --market-key", seen.market_key);
            let advice =
                "check the URL, and the key with the market's operator; somebody else may answer there";
            return Err(Failure::local(&attempted, &detail, advice).named("market_key_mismatch"));
        }
        return Ok(pin.filter(|pin| pin.market_key == key));
    }
    match pin {
        Some(pin) if pin.market_key != seen.market_key => {
            let detail = format!(
                "its key has changed: it was {} since {} and is {} now. Either the market was made anew, \
                 or somebody else answers in its place",
                pin.market_key, pin.since, seen.market_key
            );
            let advice =
                format!("ask its operator; if the new key is right, give --market-key {}", seen.market_key);
            Err(Failure::local(&attempted, &detail, &advice).named("market_key_changed"))
        }
        Some(_) | None => Ok(pin),
    }
}

/// The release key to use: what the market shows, where that is expected.
fn release_key(
    pin: Option<&Pin>,
    url: &str,
    given: Given,
    seen: &Market,
) -> Result<Option<PublicKey>, Failure> {
    let attempted = format!("trust upgrades from the market at {url}");
    let shown = seen.release_key.map_or_else(|| "none".to_owned(), |key| key.to_string());
    if let Some(key) = given.release_key {
        if seen.release_key != Some(key) {
            let detail = format!("its release key is {shown}, not the {key} given with --release-key");
            let advice = "check the key with the market's operator";
            return Err(Failure::local(&attempted, &detail, advice).named("release_key_mismatch"));
        }
        return Ok(Some(key));
    }
    match pin {
        Some(pin) if !given.for_ticket => Ok(pin.release_key),
        // Whoever holds the release key decides what runs on the hosts as root.
        Some(pin) if seen.release_key.is_some() && seen.release_key != pin.release_key => {
            let before = pin.release_key.map_or_else(|| "none".to_owned(), |key| key.to_string());
            let detail = format!("its release key has changed: it was {before} and is {shown} now");
            let advice = format!(
                "ask its operator; if the new key is right, make a ticket with --release-key {shown}"
            );
            Err(Failure::local(&attempted, &detail, &advice).named("release_key_changed"))
        }
        Some(_) | None => Ok(seen.release_key),
    }
}

fn read(path: &Path) -> Result<Known, Failure> {
    let failed = |detail: &str| {
        let attempted = format!("read the known markets in {}", path.display());
        Failure::local(&attempted, detail, "correct the file, or move it away to trust every market anew")
    };
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|error: toml::de::Error| failed(error.message())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
        Err(error) => Err(failed(&error.to_string())),
    }
}

/// Writes the whole file or leaves the old one.
fn write(path: &Path, known: &Known) -> io::Result<()> {
    let dir = path.parent().map_or_else(PathBuf::new, Path::to_owned);
    fs::create_dir_all(&dir)?;
    let text = toml::to_string(known).map_err(io::Error::other)?;
    let mut file = tempfile::NamedTempFile::new_in(&dir)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://market.example";
    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn market(market: u8, release: Option<u8>) -> Market {
        Market { market_key: key(market), release_key: release.map(key), hub: None, version: "0.1.0".into() }
    }

    fn pin(market: u8, release: Option<u8>) -> Pin {
        Pin { market_key: key(market), release_key: release.map(key), since: NOW }
    }

    fn verdict(pin: Option<&Pin>, given: Given, seen: &Market) -> Result<Verdict, String> {
        judge(pin, URL, Given { for_ticket: true, ..given }, seen, NOW)
            .map_err(|failure| failure.problem.code)
    }

    #[test]
    fn the_first_key_is_told_and_remembered_and_then_known() {
        let first = verdict(None, Given::default(), &market(1, Some(2))).expect("trusted");
        assert_eq!(first.remember, Some(pin(1, Some(2))));
        assert!(
            first.notices[0].contains(&key(1).to_string()) && first.notices[1].contains(&key(2).to_string())
        );
        let again = verdict(first.remember.as_ref(), Given::default(), &market(1, Some(2))).expect("known");
        assert_eq!(again, Verdict { remember: None, notices: Vec::new() });
    }

    #[test]
    fn a_changed_key_is_refused_with_the_way_to_accept_it() {
        let known = pin(1, None);
        assert_eq!(
            verdict(Some(&known), Given::default(), &market(3, None)),
            Err("market_key_changed".into())
        );
        let failure = judge(Some(&known), URL, Given::default(), &market(3, None), NOW).expect_err("changed");
        assert!(failure.problem.suggestion.ends_with(&format!("--market-key {}", key(3))));
        let accepted = Given { market_key: Some(key(3)), ..Given::default() };
        let verdict = verdict(Some(&known), accepted, &market(3, None)).expect("accepted");
        assert_eq!(verdict, Verdict { remember: Some(pin(3, None)), notices: Vec::new() });
    }

    #[test]
    fn a_pinned_key_is_the_only_one_that_is_taken() {
        let given = Given { market_key: Some(key(1)), ..Given::default() };
        assert_eq!(verdict(None, given, &market(2, None)), Err("market_key_mismatch".into()));
        assert_eq!(verdict(None, given, &market(1, None)).expect("equal").notices, Vec::<String>::new());
    }

    #[test]
    fn another_release_key_is_refused_until_it_is_given() {
        for before in [None, Some(2)] {
            let known = pin(1, before);
            let refused = verdict(Some(&known), Given::default(), &market(1, Some(3)));
            assert_eq!(refused, Err("release_key_changed".into()));
            let given = Given { release_key: Some(key(3)), ..Given::default() };
            let accepted = verdict(Some(&known), given, &market(1, Some(3))).expect("given");
            assert_eq!(accepted.remember, Some(pin(1, Some(3))));
        }
        let listing = judge(Some(&pin(1, Some(2))), URL, Given::default(), &market(1, Some(3)), NOW);
        assert_eq!(listing.expect("no ticket, no matter").remember, None);
        // A market that shows none for a while cannot slip in another one later.
        let silent = verdict(Some(&pin(1, Some(2))), Given::default(), &market(1, None)).expect("known");
        assert_eq!(silent.remember, None);
    }

    #[test]
    fn what_is_remembered_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("nave/config.toml");
        let given = Given { market_key: Some(key(1)), ..Given::default() };
        recognise(Some(&config), "https://market.example/", given, &market(1, None)).expect("remembered");
        let changed = recognise(Some(&config), URL, Given::default(), &market(2, None)).expect_err("another");
        assert_eq!(changed.problem.code, "market_key_changed");
        fs::write(config.with_file_name(FILE), "markets = 1").expect("written");
        assert!(recognise(Some(&config), URL, Given::default(), &market(1, None)).is_err());
    }
}
