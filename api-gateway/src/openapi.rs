//! The OpenAPI description of the customers' API.

use nave_sdk::wire::rest::Problem;
use utoipa::{
    Modify, OpenApi, ToSchema as _,
    openapi::{
        Content, OpenApi as Document, RefOr, Response,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
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
        }
    }
}

/// The OpenAPI 3.1 description of the customers' API, as indented JSON. The same code
/// gives the same bytes.
#[must_use]
pub fn openapi() -> String {
    let described = OpenApiRouter::with_openapi(Description::openapi())
        .merge(routes::with_key())
        .merge(routes::without_key());
    let mut document = described.into_openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    for item in document.paths.paths.values_mut() {
        let methods = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete];
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
