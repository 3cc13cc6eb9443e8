//! What must never be seen: keys, scripts that carry tickets, and what clouds tell of passwords.

use std::fmt;

use serde_json::Value;
use zeroize::Zeroizing;

/// Text that nothing prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Keeps `text` from being printed.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text, for the one place that sends it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// What stands for a hidden value.
pub const HIDDEN: &str = "[hidden]";
/// The shortest secret that is looked for in texts of others: shorter ones would hide half of every word.
const SECRET_MIN: usize = 6;
/// The longest payload that is kept, in bytes.
const PAYLOAD_MAX: usize = 8 << 10;
/// Parts of names whose values are never kept.
const TOLD_BY_NAME: [&str; 14] = [
    "password",
    "passwd",
    "secret",
    "token",
    "api_key",
    "apikey",
    "credential",
    "user_data",
    "userdata",
    "onstart",
    "script",
    "command",
    "env",
    "ssh",
];

/// Hides every occurrence of the secrets in a text of somebody else.
#[must_use]
pub fn without(text: &str, secrets: &[Secret]) -> String {
    let long = secrets.iter().filter(|secret| secret.reveal().len() >= SECRET_MIN);
    long.fold(text.to_owned(), |text, secret| text.replace(secret.reveal(), HIDDEN))
}

/// A payload as JSON without what may be secret in it, and no longer than is useful.
#[must_use]
pub fn payload(raw: &str) -> String {
    let Ok(mut value) = serde_json::from_str::<Value>(raw) else { return HIDDEN.to_owned() };
    hide(&mut value);
    let mut text = value.to_string();
    if text.len() > PAYLOAD_MAX {
        let end = (0..=PAYLOAD_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn hide(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                let name = name.to_ascii_lowercase();
                if TOLD_BY_NAME.iter().any(|part| name.contains(part)) {
                    *value = Value::String(HIDDEN.to_owned());
                } else {
                    hide(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(hide),
        // Links carry tokens in their queries.
        Value::String(text) if text.contains("://") && text.contains('?') => HIDDEN.clone_into(text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let printed = format!("{:?} {:?}", Secret::new("sk-very-secret"), Some(Secret::new("other")));
        assert_eq!(printed, "[hidden] Some([hidden])");
    }

    #[test]
    fn payloads_keep_figures_and_lose_passwords_keys_and_links() {
        let raw = r#"{"price":1.10,"list":[{"username":"Ubuntu","password":123456}],"jupyter_url":"https://a/?token=x",
            "ssh_key_ids":["a"],"extra_env":[["KEY","v"]],"onstart":"join t1","apiKey":"k"}"#;
        let kept = payload(raw);
        for secret in ["123456", "token=x", "join", "\"v\"", "\"k\""] {
            assert!(!kept.contains(secret), "{secret} in {kept}");
        }
        assert!(kept.contains("Ubuntu") && kept.contains("\"price\":1.1"));
        assert_eq!(payload("not json, password 1234"), HIDDEN);
    }

    #[test]
    fn what_an_error_repeats_is_hidden() {
        let text = without("bad key sk-12345 given", &[Secret::new("sk-12345"), Secret::new("a")]);
        assert_eq!(text, "bad key [hidden] given");
    }
}
