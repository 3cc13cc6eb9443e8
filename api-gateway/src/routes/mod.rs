//! The customers' API: one module per resource.

mod balance;
mod classes;
mod disputes;
pub(crate) mod earnings;
mod enrolments;
mod epochs;
mod events;
mod health;
mod hosts;
mod jobs;
mod keys;
mod logs;
mod market;
mod miner;
mod offers;
mod params;
mod quotes;
mod receipts;
pub(crate) mod verdicts;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::header::CONTENT_TYPE,
    middleware::{from_fn, from_fn_with_state},
    routing::get,
};
use nave_sdk::wire::enrol::REQUEST_BYTES_MAX;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use jobs::wait;

use crate::{app::App, caller, guard, openapi};

/// Largest body of a customer's call, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Every call that needs a key.
pub(crate) fn with_key() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(jobs::list, jobs::submit))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::cancel))
        .routes(routes!(disputes::open))
        .routes(routes!(jobs::result))
        .routes(routes!(logs::read))
        .routes(routes!(receipts::show))
        .routes(routes!(offers::list_offers))
        .routes(routes!(classes::list))
        .routes(routes!(quotes::create))
        .routes(routes!(quotes::show))
        .routes(routes!(quotes::release))
        .routes(routes!(hosts::list))
        .routes(routes!(balance::show))
        .routes(routes!(balance::ledger))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::revoke))
        .routes(routes!(epochs::list))
        .routes(routes!(epochs::show))
}

/// Every call that needs none.
pub(crate) fn without_key() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health::show))
        .routes(routes!(market::show))
        .routes(routes!(params::show))
        .routes(routes!(epochs::evidence))
        .routes(routes!(verdicts::list))
        .routes(routes!(verdicts::show))
        .routes(routes!(verdicts::opening))
}

/// Every call that hosts which join and miners sign.
pub(crate) fn signed() -> OpenApiRouter<App> {
    joining().merge(miners())
}

fn joining() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(enrolments::create))
}

fn miners() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(miner::list))
        .routes(routes!(miner::show, miner::change))
        .routes(routes!(miner::drain))
        .routes(routes!(miner::leave))
        .routes(routes!(verdicts::appeal))
        .routes(routes!(events::list))
        .routes(routes!(earnings::list))
        .routes(routes!(earnings::show))
        .routes(routes!(earnings::collateral))
        .routes(routes!(earnings::call_back))
}

/// The whole API, ready to serve.
pub(crate) fn router(app: &App) -> Router {
    let document = openapi::openapi();
    let guarded =
        with_key().split_for_parts().0.route_layer(from_fn_with_state(app.clone(), caller::authenticate));
    let joining =
        joining().split_for_parts().0.route_layer(from_fn_with_state(app.clone(), enrolments::sign_answer));
    let signed = joining.merge(miners().split_for_parts().0).layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX));
    Router::new()
        .merge(guarded)
        .merge(signed)
        .merge(without_key().split_for_parts().0)
        .route("/v1/openapi.json", get(async move || ([(CONTENT_TYPE, "application/json")], document)))
        .fallback(guard::no_such_route)
        .method_not_allowed_fallback(guard::no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(guard::catch_panics))
        .with_state(app.clone())
}
