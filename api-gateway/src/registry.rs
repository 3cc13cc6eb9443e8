//! Pins an image's tag to the digest that its registry names now.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use tokio::{sync::Semaphore, time::timeout};

use crate::{error::ApiError, image};

/// Longest look-up.
const LOOK_UP_MAX: Duration = Duration::from_secs(10);
/// How long a digest is believed without asking again.
const FRESH: Duration = Duration::from_secs(60);
/// Digests remembered.
const KEPT_MAX: usize = 256;
/// Look-ups at a time.
const LOOK_UPS_MAX: usize = 8;

/// The registries that the gateway asks, and what they said lately.
pub(crate) struct Registry {
    allowed: Vec<String>,
    insecure: Vec<String>,
    client: Mutex<Option<Client>>,
    kept: Mutex<HashMap<String, (Instant, String)>>,
    turns: Semaphore,
}

impl Registry {
    pub(crate) fn new(allowed: &[String], insecure: &[String]) -> Self {
        Self {
            allowed: allowed.to_vec(),
            insecure: insecure.to_vec(),
            client: Mutex::default(),
            kept: Mutex::default(),
            turns: Semaphore::new(LOOK_UPS_MAX),
        }
    }

    /// The reference of an image with its digest.
    ///
    /// One that names a digest stays as it is. A tag is looked up, but only in registries
    /// on the list: a customer must not choose what this machine connects to.
    pub(crate) async fn pin(&self, text: &str) -> Result<String, ApiError> {
        let reference = image::parse(text)?;
        if reference.digest().is_some() {
            return Ok(text.to_owned());
        }
        let registry = reference.registry();
        if !self.allowed.iter().chain(&self.insecure).any(|allowed| allowed == registry) {
            return Err(self.not_allowed(registry));
        }
        let name = reference.whole();
        if let Some(digest) = self.recall(&name) {
            return Ok(reference.clone_with_digest(digest).whole());
        }
        let digest = self.look_up(&reference).await?;
        self.keep(name, &digest);
        Ok(reference.clone_with_digest(digest).whole())
    }

    async fn look_up(&self, reference: &Reference) -> Result<String, ApiError> {
        let unreachable = |cause: String| unreachable(reference, cause);
        let client = self.client().map_err(|error| unreachable(error.to_string()))?;
        let asked = async {
            let _turn = self.turns.acquire().await;
            client.fetch_manifest_digest(reference, &RegistryAuth::Anonymous).await
        };
        match timeout(LOOK_UP_MAX, asked).await {
            Err(_) => Err(unreachable("it did not answer in time".to_owned())),
            Ok(Ok(digest)) if image::is_sha256(&digest) => Ok(digest),
            Ok(Ok(digest)) => Err(unreachable(format!("it named the digest {digest:?}"))),
            Ok(Err(error)) if says_missing(&error) => Err(not_found(reference)),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
        }
    }

    /// Made when first needed: a machine without TLS roots may never need it.
    fn client(&self) -> Result<Client, OciDistributionError> {
        let mut kept = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = kept.as_ref() {
            return Ok(client.clone());
        }
        // An error here means that a provider is installed already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_from(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(self.insecure.clone()),
            connect_timeout: Some(LOOK_UP_MAX),
            ..ClientConfig::default()
        })?;
        Ok(kept.insert(client).clone())
    }

    fn recall(&self, name: &str) -> Option<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(name).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, digest)| digest.clone())
    }

    fn keep(&self, name: String, digest: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        if kept.len() < KEPT_MAX {
            kept.insert(name, (Instant::now(), digest.to_owned()));
        }
    }

    fn not_allowed(&self, registry: &str) -> ApiError {
        let listed = self.allowed.join(", ");
        ApiError::refused("registry_not_allowed", format!("image: tags are not looked up in {registry}"))
            .suggest(format!("name the image by its @sha256: digest, or use one from {listed}"))
    }
}

/// Whether the registry answered that there is no such image, or none for the public:
/// many say the same of both.
fn says_missing(error: &OciDistributionError) -> bool {
    use OciErrorCode as Code;
    if let OciDistributionError::RegistryError { envelope, .. } = error {
        let missing =
            [Code::ManifestUnknown, Code::NameUnknown, Code::Denied, Code::Unauthorized, Code::NotFound];
        return envelope.errors.iter().any(|error| missing.contains(&error.code));
    }
    matches!(
        error,
        OciDistributionError::ImageManifestNotFoundError(_)
            | OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::ServerError { code: 401 | 403 | 404, .. }
    )
}

fn not_found(reference: &Reference) -> ApiError {
    ApiError::refused("image_not_found", format!("image: there is no public image {}", reference.whole()))
        .suggest("check its name and tag")
}

fn unreachable(reference: &Reference, cause: String) -> ApiError {
    let detail = format!(
        "image: the registry {} did not say which image {} is",
        reference.registry(),
        reference.whole()
    );
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "registry_unreachable", detail)
        .suggest("try again later, or name the image by its @sha256: digest")
        .retryable()
        .with_cause(cause)
}
