//! Images: pinned by digest, pulled once.

use anyhow::Context as _;
use bollard::{Docker as Client, errors::Error as ApiError, query_parameters::CreateImageOptionsBuilder};
use futures_util::TryStreamExt as _;

/// An image reference that names its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned(String);

impl Pinned {
    /// Reads `name@sha256:…`; a tag beside the digest is allowed and means nothing.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, digest) = text.split_once("@sha256:").ok_or("the image carries no sha256 digest")?;
        if name.is_empty() || digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("the image's digest is not 64 hexadecimal digits after a name".into());
        }
        Ok(Self(text.to_owned()))
    }
}

/// Makes sure that the image is there, pulling it where it is not. Answers the
/// paths that it declares as volumes.
///
/// # Errors
/// When it cannot be pulled.
pub async fn ensure(client: &Client, image: &Pinned) -> anyhow::Result<Vec<String>> {
    if let Some(volumes) = volumes(client, image).await? {
        return Ok(volumes);
    }
    tracing::info!(image = image.0, "pulling");
    let options = CreateImageOptionsBuilder::default().from_image(&image.0).build();
    let pull = client.create_image(Some(options), None, None);
    pull.try_for_each(|_| async { Ok(()) }).await.context("pull the image")?;
    volumes(client, image).await?.context("the image is not there after it was pulled")
}

/// The volumes that a local image declares; `None` where it is not here.
async fn volumes(client: &Client, image: &Pinned) -> anyhow::Result<Option<Vec<String>>> {
    match client.inspect_image(&image.0).await {
        Ok(found) => Ok(Some(found.config.and_then(|config| config.volumes).unwrap_or_default())),
        Err(ApiError::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error).context("look the image up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_digest_pins_an_image() {
        let digest = "a".repeat(64);
        assert!(Pinned::parse(&format!("127.0.0.1:5000/x/y@sha256:{digest}")).is_ok());
        assert!(Pinned::parse(&format!("x:tag@sha256:{digest}")).is_ok());
        for text in
            ["x", "x:latest", "x@sha256:abc", &format!("@sha256:{digest}"), &format!("x@sha256:{digest}0")]
        {
            assert!(Pinned::parse(text).is_err(), "{text} was taken");
        }
    }
}
