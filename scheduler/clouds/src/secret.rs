//! What must never be seen: keys, scripts that carry tickets, and what clouds tell of passwords.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
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
/// The shortest text in a request that is taken for a script, in bytes.
const SCRIPT_MIN: usize = 64;
/// The shortest part of a script that is hidden, in bytes: fewer of a ticket's are of no use to anybody.
const PART_MIN: usize = 12;
/// How much of a text of somebody else is looked at, in bytes.
const TEXT_MAX: usize = 4 << 10;
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

/// The long texts in what is sent, as they are and in the other form that scripts are sent in: a cloud
/// that repeats a request in its error must not tell a ticket to whoever reads that.
#[must_use]
pub fn long_texts(sent: &Value) -> Vec<Secret> {
    match sent {
        Value::Object(fields) => fields.values().flat_map(long_texts).collect(),
        Value::Array(values) => values.iter().flat_map(long_texts).collect(),
        Value::String(text) if text.len() >= SCRIPT_MIN => {
            let decoded = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let other = decoded.unwrap_or_else(|| STANDARD.encode(text));
            vec![Secret::new(text.as_str()), Secret::new(other)]
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// Hides every part of the secrets in a text of somebody else that is longer than a few letters, wherever
/// that text cuts them off or breaks them. What comes after the first few thousand bytes is left out.
#[must_use]
pub fn without_parts(text: &str, secrets: &[Secret]) -> String {
    let text = &text.as_bytes()[..text.len().min(TEXT_MAX)];
    let is_part = |part: &[u8]| {
        secrets.iter().any(|secret| secret.reveal().as_bytes().windows(part.len()).any(|found| found == part))
    };
    let mut kept: Vec<u8> = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let hidden = (at + PART_MIN..=text.len()).take_while(|end| is_part(&text[at..*end])).last();
        if let Some(end) = hidden {
            kept.extend_from_slice(HIDDEN.as_bytes());
            at = end;
        } else {
            kept.push(text[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
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
    fn no_part_of_a_script_gets_into_an_error_however_it_is_repeated() {
        let ticket = "nave1.eyJ1cmwiOiJodHRwczovL21hcmtldC5leGFtcGxlIn0.0123456789abcdef0123456789abcdef";
        let script = format!("#!/bin/sh\nticket='{ticket}'\nminer-agent enrol -\n");
        for sent in [script.clone(), STANDARD.encode(&script)] {
            let sent = long_texts(&serde_json::json!({ "name": "m", "config": [{ "user_data": sent }] }));
            let repeated = [
                format!("user_data {script} is not allowed"),
                format!("user_data {} is not allowed", script.escape_debug()),
                format!("bad body: {}", STANDARD.encode(&script)),
                format!("bad value \"{}", &script[..50]),
                format!("bad value {ticket:.40}... of 12 GPUs"),
            ];
            for text in repeated {
                let shown = without_parts(&text, &sent);
                for part in [&ticket[8..28], &ticket[50..70], &STANDARD.encode(&script)[20..40]] {
                    assert!(!shown.contains(part), "{shown}");
                }
            }
            assert_eq!(without_parts("gpu_8x is out of stock", &sent), "gpu_8x is out of stock");
        }
    }

    #[test]
    fn what_an_error_repeats_is_hidden() {
        let text = without("bad key sk-12345 given", &[Secret::new("sk-12345"), Secret::new("a")]);
        assert_eq!(text, "bad key [hidden] given");
    }
}
