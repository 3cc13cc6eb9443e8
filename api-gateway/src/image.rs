//! Image references: what they may look like.

use oci_client::Reference;

use crate::error::ApiError;

/// Longest reference that is read, in bytes.
const IMAGE_BYTES_MAX: usize = 512;

/// Reads an image reference, as the OCI distribution specification writes it.
///
/// A digest must be the SHA-256 that container engines verify.
pub(crate) fn parse(text: &str) -> Result<Reference, ApiError> {
    if text.len() > IMAGE_BYTES_MAX {
        return Err(invalid(&format!("it is longer than {IMAGE_BYTES_MAX} bytes")));
    }
    // The library takes capitals in the first part of a name for a registry, then for a
    // repository. Its full text is read by the rules of a repository.
    let reference = Reference::try_from(text)
        .and_then(|reference| Reference::try_from(reference.whole()))
        .map_err(|error| invalid(&error.to_string()))?;
    match reference.digest() {
        Some(digest) if !is_sha256(digest) => {
            Err(invalid("its digest is not sha256: and 64 lowercase hexadecimal digits"))
        }
        Some(_) | None => Ok(reference),
    }
}

/// Whether this is a digest that pins an image.
pub(crate) fn is_sha256(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

fn invalid(problem: &str) -> ApiError {
    ApiError::refused("image_invalid", format!("image: it is no image reference: {problem}"))
        .suggest("write it as registry/name:tag or registry/name@sha256:digest")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945";

    #[test]
    fn a_short_name_means_docker_hub_and_its_latest_tag() {
        let reference = parse("python").expect("a reference");
        assert_eq!(reference.whole(), "docker.io/library/python:latest");
    }

    #[test]
    fn a_reference_with_a_digest_is_pinned() {
        let reference = parse(&format!("127.0.0.1:5000/nave/python3@sha256:{HEX}")).expect("a reference");
        assert_eq!(reference.registry(), "127.0.0.1:5000");
        assert!(reference.digest().is_some_and(is_sha256));
    }

    #[test]
    fn what_no_engine_would_pull_is_refused() {
        let upper = format!("a@sha256:{}", HEX.to_uppercase());
        let long = "a".repeat(600);
        for text in [
            "",
            " python",
            "Python:3",
            "UPPER/case:1",
            "a//b",
            "a:b:c",
            "a@sha256:12",
            "../etc",
            &upper,
            &long,
            "a\0b",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn foreign_references_never_panic_and_what_is_read_reads_the_same_again(
            text in prop_oneof![any::<String>(), "[a-zA-Z0-9./:@_-]{0,80}", "[a-z.]{1,9}/[a-z]{1,9}(:[a-z]{1,9})?"],
        ) {
            if let Ok(reference) = parse(&text) {
                let again = parse(&reference.whole()).expect("its own text");
                prop_assert_eq!(again.whole(), reference.whole());
            }
        }
    }
}
