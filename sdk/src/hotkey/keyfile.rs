//! Hotkey files as Bittensor wallets write them, and files that hold a secret URI.

use nave_domain::Bytes;
use schnorrkel::{Keypair, SecretKey};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Hotkey, HotkeySecret};

/// Largest file worth reading.
pub const KEYFILE_BYTES_MAX: Bytes = Bytes(16 << 10);

/// Why a file gives no key. It never quotes the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKeyfile {
    /// It is encrypted.
    #[error("it is encrypted")]
    Encrypted,
    /// It holds the public part only.
    #[error("it holds the public part of a key only")]
    Public,
    /// Its secret belongs to another address than it says.
    #[error("its secret does not belong to the address in it, {0}")]
    Mismatch(String),
    /// It is something else.
    #[error("it is neither a hotkey file of a Bittensor wallet nor a secret URI: {0}")]
    Other(String),
}

impl BadKeyfile {
    /// What to do about it.
    #[must_use]
    pub fn suggestion(&self) -> &'static str {
        match self {
            Self::Encrypted => {
                "hotkeys are not encrypted by default; write a plain one with \
                 `btcli wallet regen-hotkey`, or put the mnemonic into NAVE_HOTKEY_URI for this command"
            }
            Self::Public => {
                "use the file without `pub` in its name, on the machine where the hotkey was made"
            }
            Self::Mismatch(_) => "write the file anew with `btcli wallet regen-hotkey`",
            Self::Other(_) => {
                "name a file such as ~/.bittensor/wallets/default/hotkeys/default; \
                 `btcli wallet new-hotkey` makes one"
            }
        }
    }
}

/// The fields of a wallet's key file; each may be absent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    account_id: Option<String>,
    public_key: Option<String>,
    private_key: Option<Zeroizing<String>>,
    secret_phrase: Option<Zeroizing<String>>,
    secret_seed: Option<Zeroizing<String>>,
    ss58_address: Option<String>,
}

impl HotkeySecret {
    /// Reads a wallet's hotkey file, or one line with a secret URI.
    ///
    /// # Errors
    /// [`BadKeyfile`].
    pub fn from_keyfile(bytes: &[u8]) -> Result<Self, BadKeyfile> {
        // What wallets write in front of NaCl, Ansible Vault and Fernet.
        if ["$NACL", "$ANSIBLE_VAULT", "gAAAAA"].iter().any(|mark| bytes.starts_with(mark.as_bytes())) {
            return Err(BadKeyfile::Encrypted);
        }
        let text = str::from_utf8(bytes).map_err(|_| BadKeyfile::Other("it is not text".into()))?.trim();
        if !text.starts_with('{') {
            return Self::from_uri(text).map_err(|error| BadKeyfile::Other(error.to_string()));
        }
        // The parser's message could quote a value.
        let fields: Fields = serde_json::from_str(text).map_err(|error| {
            let place = format!("its JSON cannot be read at line {} column {}", error.line(), error.column());
            BadKeyfile::Other(place)
        })?;
        fields.secret()
    }
}

impl Fields {
    /// The secret that belongs to the file's address: wallets have written it in several forms.
    fn secret(&self) -> Result<HotkeySecret, BadKeyfile> {
        let found = self.candidates()?;
        let address = self.address()?;
        if found.is_empty() {
            return Err(BadKeyfile::Public);
        }
        match address {
            None => found.into_iter().next().ok_or(BadKeyfile::Public),
            Some(address) => found
                .into_iter()
                .find(|secret| secret.hotkey() == address)
                .ok_or_else(|| BadKeyfile::Mismatch(address.to_string())),
        }
    }

    fn candidates(&self) -> Result<Vec<HotkeySecret>, BadKeyfile> {
        let mut found = Vec::new();
        if let Some(seed) = self.secret_seed.as_deref().filter(|seed| !seed.is_empty()) {
            found.extend(HotkeySecret::from_uri(&format!("0x{}", unprefixed(seed))).ok());
        }
        if let Some(phrase) = self.secret_phrase.as_deref().filter(|phrase| !phrase.is_empty()) {
            found.extend(HotkeySecret::from_uri(phrase).ok());
        }
        if let Some(private) = self.private_key.as_deref().filter(|private| !private.is_empty()) {
            let bytes = hex::decode(unprefixed(private)).map(Zeroizing::new);
            let bytes = bytes.map_err(|_| BadKeyfile::Other("its privateKey is not hexadecimal".into()))?;
            let forms = [SecretKey::from_bytes(&bytes), SecretKey::from_ed25519_bytes(&bytes)];
            found.extend(forms.into_iter().flatten().map(|key| HotkeySecret { pair: Keypair::from(key) }));
        }
        let given = [&self.secret_seed, &self.secret_phrase, &self.private_key];
        if found.is_empty() && given.into_iter().flatten().any(|text| !text.is_empty()) {
            return Err(BadKeyfile::Other("its secret cannot be read".into()));
        }
        Ok(found)
    }

    fn address(&self) -> Result<Option<Hotkey>, BadKeyfile> {
        if let Some(address) = &self.ss58_address {
            let bad = |error: super::ss58::BadAddress| BadKeyfile::Other(format!("ss58Address: {error}"));
            return address.parse().map(Some).map_err(bad);
        }
        let Some(hex) = self.public_key.as_ref().or(self.account_id.as_ref()) else { return Ok(None) };
        let key = hex::decode(unprefixed(hex)).ok().and_then(|bytes| bytes.try_into().ok());
        key.map(|key| Some(Hotkey(key))).ok_or(BadKeyfile::Other("its publicKey cannot be read".into()))
    }
}

/// Some wallets have written the prefix twice.
fn unprefixed(hex: &str) -> &str {
    hex.trim_start_matches("0x")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The key pair of //Alice in the fields and forms that wallets write.
    fn alice() -> Value {
        let secret = HotkeySecret::from_uri("//Alice").expect("a URI");
        let public = format!("0x{}", hex::encode(secret.hotkey().0));
        json!({
            "accountId": public, "publicKey": public, "secretPhrase": null,
            "secretSeed": "0xe5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a",
            "privateKey": format!("0x{}", hex::encode(secret.pair.secret.to_bytes())),
            "ss58Address": "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
        })
    }

    fn without(mut file: Value, fields: &[&str]) -> Value {
        for field in fields {
            file.as_object_mut().expect("an object").remove(*field);
        }
        file
    }

    fn read(file: &Value) -> Result<Hotkey, BadKeyfile> {
        HotkeySecret::from_keyfile(file.to_string().as_bytes()).map(|secret| secret.hotkey())
    }

    #[test]
    fn a_hotkey_file_of_a_wallet_is_read_in_each_of_its_forms() {
        let address = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY".parse().expect("an address");
        let mut ed25519 = without(alice(), &["secretSeed"]);
        let secret = HotkeySecret::from_uri("//Alice").expect("a URI").pair.secret.clone();
        ed25519["privateKey"] = json!(hex::encode(secret.to_ed25519_bytes()));
        let mut doubled = without(alice(), &["privateKey", "ss58Address"]);
        doubled["secretSeed"] = json!(format!("0x{}", doubled["secretSeed"].as_str().expect("text")));
        for file in [alice(), without(alice(), &["secretSeed"]), ed25519, doubled] {
            assert_eq!(read(&file), Ok(address), "{file}");
        }
    }

    #[test]
    fn a_mnemonic_in_a_file_gives_the_key_it_stands_for() {
        let phrase = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
        let expected = "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV".parse();
        assert_eq!(read(&json!({ "secretPhrase": phrase })), expected.map_err(|_| BadKeyfile::Public));
        let plain = HotkeySecret::from_keyfile(format!("{phrase}\n").as_bytes()).expect("a phrase");
        assert_eq!(Ok(plain.hotkey()), expected);
    }

    #[test]
    fn an_encrypted_file_is_named_as_such() {
        for file in ["$NACL\u{1}\u{2}", "$ANSIBLE_VAULT;1.1;AES256\n3132", "gAAAAABk"] {
            let error = HotkeySecret::from_keyfile(file.as_bytes()).expect_err("encrypted");
            assert_eq!(error, BadKeyfile::Encrypted);
            assert!(error.suggestion().contains("regen-hotkey"));
        }
    }

    #[test]
    fn a_file_without_a_secret_or_with_anothers_is_refused() {
        let public = without(alice(), &["secretSeed", "privateKey"]);
        assert_eq!(read(&public), Err(BadKeyfile::Public));
        let mut mixed = alice();
        mixed["ss58Address"] = json!("5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty");
        assert!(matches!(read(&mixed), Err(BadKeyfile::Mismatch(_))));
    }

    #[test]
    fn no_message_and_no_debug_text_contains_the_secret() {
        let secret = HotkeySecret::from_uri("//Alice").expect("a URI");
        let shown = format!("{secret:?}");
        assert!(shown.contains("5GrwvaEF") && !shown.contains(&hex::encode(secret.pair.secret.to_bytes())));
        let broken = r#"{"secretSeed": "0xe5be9a50, "x": 1}"#;
        let error = HotkeySecret::from_keyfile(broken.as_bytes()).expect_err("broken JSON");
        assert!(!error.to_string().contains("e5be"), "{error}");
        let wrong = json!({ "secretSeed": { "e5be": 1 } });
        assert!(!read(&wrong).expect_err("not text").to_string().contains("e5be"));
    }

    proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..400_usize) {
            let _ = HotkeySecret::from_keyfile(&bytes);
            let whole = alice().to_string();
            let _ = HotkeySecret::from_keyfile(&whole.as_bytes()[..cut.min(whole.len())]);
        }
    }
}
