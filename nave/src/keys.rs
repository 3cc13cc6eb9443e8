//! Files with the secrets of a market and of its local miner.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::Context as _;
use nave_sdk::{
    hotkey::HotkeySecret,
    wire::sign::{SecretKey, random},
};
use serde_json::json;

use crate::up::write_whole;

/// The Ed25519 key in a file.
///
/// # Errors
/// When there is no such file or it holds something else.
pub fn load(path: &Path) -> anyhow::Result<SecretKey> {
    let text = fs::read_to_string(path).with_context(|| format!("read the key in {}", path.display()))?;
    SecretKey::parse(&text).with_context(|| format!("read the key in {}", path.display()))
}

/// The Ed25519 key in a file, or a new one that is in the file from now on.
///
/// # Errors
/// When the file holds something else or cannot be written.
pub fn load_or_make(path: &Path) -> anyhow::Result<SecretKey> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = SecretKey::generate()?;
            write_whole(path, format!("{}\n", key.reveal()).as_bytes())
                .with_context(|| format!("write the key {}", path.display()))?;
            Ok(key)
        }
        Ok(_) | Err(_) => load(path),
    }
}

/// The hotkey in a file of a Bittensor wallet, or a new one that is in the file from now on.
///
/// # Errors
/// When the file holds something else or cannot be written.
pub fn hotkey(path: &Path) -> anyhow::Result<HotkeySecret> {
    let read = || format!("read the hotkey in {}", path.display());
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let (secret, text) = new_hotkey()?;
            write_whole(path, text.as_bytes())
                .with_context(|| format!("write the hotkey {}", path.display()))?;
            Ok(secret)
        }
        bytes => HotkeySecret::from_keyfile(&bytes.with_context(read)?).with_context(read),
    }
}

/// A new hotkey, with what a wallet writes about it.
fn new_hotkey() -> anyhow::Result<(HotkeySecret, String)> {
    let seed: [u8; 32] = random()?;
    let secret = HotkeySecret::from_seed(&seed)?;
    let public = format!("0x{}", hex::encode(secret.hotkey().0));
    let text = json!({
        "accountId": public,
        "publicKey": public,
        "secretSeed": format!("0x{}", hex::encode(seed)),
        "ss58Address": secret.hotkey().to_string(),
    });
    Ok((secret, format!("{text}\n")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_its_owner_alone_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (market, miner) = (dir.path().join("market.key"), dir.path().join("miner.hotkey"));
        let made =
            (load_or_make(&market).expect("a key").public(), hotkey(&miner).expect("a hotkey").hotkey());
        let again =
            (load_or_make(&market).expect("a key").public(), hotkey(&miner).expect("a hotkey").hotkey());
        assert_eq!(made, again);
        for path in [&market, &miner] {
            assert_eq!(fs::metadata(path).expect("a file").permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_file_that_holds_no_key_is_named_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("market.key");
        fs::write(&path, "something else").expect("written");
        let error = load_or_make(&path).expect_err("no key");
        assert!(format!("{error:#}").contains("market.key"));
        assert_eq!(fs::read_to_string(&path).expect("a file"), "something else");
    }
}
