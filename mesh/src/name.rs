use std::{fmt, str::FromStr};

use crate::Error;

/// The name of an interface: at most 15 of `a-z`, `0-9` and `_`, a letter first.
///
/// The sockets through which userspace interfaces are configured lie in one
/// folder for all namespaces, so a name is unique on its machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
        if text.len() > 15 || !starts || !text.chars().all(allowed) {
            return Err(Error::Name(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_nothing_but_a_name() {
        for text in ["nave0", "nave_hub", "a", "abcdefghijklmno"] {
            assert!(text.parse::<Name>().is_ok(), "{text}");
        }
        for text in ["", "0a", "-n", "a b", "a;b", "a\"", "Nave", "abcdefghijklmnop", "../a", "a-b"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
