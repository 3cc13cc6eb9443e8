//! Identifiers: UUIDs that name what they identify.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// Text that is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id of the form {prefix}_ followed by 32 hexadecimal digits")]
pub struct BadId {
    prefix: &'static str,
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                text.strip_prefix(concat!($prefix, "_"))
                    .filter(|hex| hex.len() == 32)
                    .and_then(|hex| Uuid::try_parse(hex).ok())
                    .map(Self)
                    .ok_or_else(|| BadId { prefix: $prefix, text: text.chars().take(64).collect() })
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

id!(
    /// Who pays for jobs.
    CustomerId, "cus"
);
id!(
    /// An API key; the secret beside it is never stored.
    KeyId, "key"
);
id!(
    /// One machine that offers capacity.
    HostId, "host"
);
id!(
    /// One request to run a command.
    JobId, "job"
);
id!(
    /// One attempt of a job on one host.
    LeaseId, "lease"
);
id!(
    /// A placement that is held at its price.
    QuoteId, "quote"
);
id!(
    /// One test of what a host claims.
    ChallengeId, "challenge"
);
id!(
    /// One thing that happened to a lease or a host, and whose fault it is.
    EventId, "event"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form() {
        let id = JobId(Uuid::from_u128(7));
        assert_eq!(id.to_string().parse::<JobId>(), Ok(id));
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let host = HostId(Uuid::from_u128(7)).to_string();
        assert!(host.parse::<JobId>().is_err());
        assert!("job_7".parse::<JobId>().is_err());
    }
}
