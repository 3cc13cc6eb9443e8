//! The OpenAPI description of the customers' API.

use nave_sdk::wire::{
    rest::Problem,
    sign::{EXPIRY_HEADER, KEY_HEADER, NONCE_HEADER, SIGNATURE_HEADER},
};
use utoipa::{
    Modify, OpenApi, ToSchema as _,
    openapi::{
        Content, OpenApi as Document, RefOr, Response,
        path::Operation,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::router::OpenApiRouter;

use crate::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Nave",
        description = "A market for GPU compute: jobs, their output, results and receipts. Every error is a problem \
            document (RFC 9457) with a code, whether to retry, and what to do about it.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem, nave_sdk::wire::rest::LogLine)),
    modifiers(&KeyScheme),
    tags(
        (name = "jobs", description = "Commands that run on a host"),
        (name = "market", description = "Capacity, hosts and epochs"),
        (name = "money", description = "Balance and ledger"),
        (name = "keys", description = "API keys"),
        (name = "miners", description = "What identifies the market, hosts that join, and hosts as their owners keep them"),
        (name = "health", description = "Whether the control plane works")
    )
)]
struct Description;

struct KeyScheme;

impl Modify for KeyScheme {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key with the scope that the call asks for"))
            .build();
        if let Some(components) = document.components.as_mut() {
            components.add_security_scheme("key", SecurityScheme::Http(scheme));
            for (name, key) in [("hotkey", "miner's hotkey, sr25519"), ("agent", "agent's key, Ed25519")] {
                let signature = ApiKeyValue::with_description(SIGNATURE_HEADER.to_owned(), signature_of(key));
                components.add_security_scheme(name, SecurityScheme::ApiKey(ApiKey::Header(signature)));
            }
        }
    }
}

fn signature_of(key: &str) -> String {
    format!(
        "A signature by the {key}, in hexadecimal, of these lines, joined by line feeds: `nave request 1`, the \
         market key, the method, the path with its query, the SHA-256 of the body, the header `{NONCE_HEADER}` (32 \
         random hexadecimal digits, used once) and the header `{EXPIRY_HEADER}` (milliseconds since 1970, at most \
         five minutes ahead). The header `{KEY_HEADER}` names the key."
    )
}

/// The OpenAPI 3.1 description of the customers' API, as indented JSON. The same code
/// gives the same bytes.
#[must_use]
pub fn openapi() -> String {
    let described = OpenApiRouter::with_openapi(Description::openapi())
        .merge(routes::with_key())
        .merge(routes::without_key())
        .merge(routes::signed());
    let mut document = described.into_openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    for item in document.paths.paths.values_mut() {
        let methods = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        methods.into_iter().flatten().for_each(can_fail);
    }
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// Every call can be refused, always with the same kind of document.
fn can_fail(operation: &mut Operation) {
    let reference = utoipa::openapi::Ref::from_schema_name(Problem::name());
    let mut refusal = Response::new("Refused or failed; the code says why");
    let content = Content::new(Some(RefOr::Ref(reference)));
    refusal.content.insert("application/problem+json".to_owned(), RefOr::T(content));
    operation.responses.responses.insert("default".to_owned(), RefOr::T(refusal));
}
