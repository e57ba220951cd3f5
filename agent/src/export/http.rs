//! The HTTP server's routes. Nothing here changes anything.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Board, metrics, page, profile, status};
use crate::aggregate::{Cause, ProfileQuery, Service, StackKind, WindowProfile};

/// All routes.
pub fn router(board: Board) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(scrape))
        .route("/status", get(status_page))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/api/v1/services", get(services))
        .route("/services/{namespace}/{service}/profile/{kind}", get(profile_of))
        .fallback(|| async { (StatusCode::NOT_FOUND, "not found; / lists the services\n") })
        .with_state(board)
}

fn typed(kind: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn index(State(board): State<Board>) -> Response {
    typed("text/html; charset=utf-8", page::services(&board.read()).into_string())
}

async fn scrape(State(board): State<Board>) -> Response {
    match metrics::render(&board.read()) {
        Ok(text) => typed("text/plain; version=0.0.4; charset=utf-8", text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

#[derive(Deserialize)]
struct StatusQuery {
    format: Option<String>,
}

async fn status_page(State(board): State<Board>, Query(query): Query<StatusQuery>, headers: HeaderMap) -> Response {
    let published = board.read();
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if query.format.as_deref() == Some("json") || query.format.is_none() && accepts.contains("application/json") {
        return Json(status::as_json(&published)).into_response();
    }
    typed("text/plain; charset=utf-8", status::as_text(&published))
}

async fn ready(State(board): State<Board>) -> Response {
    if board.read().telemetry.ticks > 0 {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the first window is not finished\n").into_response()
}

async fn services(State(board): State<Board>) -> Json<Value> {
    let published = board.read();
    let snapshot = &published.snapshot;
    let seconds = snapshot.length_seconds();
    let services: Vec<Value> = snapshot
        .services
        .iter()
        .map(|service| {
            let (totals, last) = (&service.totals, &service.last);
            let waits: serde_json::Map<String, Value> = Cause::ALL
                .iter()
                .map(|cause| (cause.as_str().to_owned(), json!(totals.wait_ns[cause.index()] as f64 / 1e9)))
                .collect();
            json!({
                "name": service.service.name,
                "namespace": service.service.namespace,
                "version": service.service.version,
                "source": service.info.source,
                "container_id": service.info.container_id,
                "unit": service.info.unit,
                "executable": service.info.executable,
                "pids": service.info.pids,
                "processes": totals.processes,
                "threads": totals.threads,
                "cpu_seconds": (totals.cpu_user_ns + totals.cpu_system_ns) as f64 / 1e9,
                "cpu_per_second": (last.cpu_user_ns + last.cpu_system_ns) as f64 / 1e9 / seconds,
                "wait_seconds": waits,
            })
        })
        .collect();
    Json(json!({ "window_end_unix_ns": snapshot.at_unix_ns, "window_seconds": seconds, "services": services }))
}

#[derive(Deserialize)]
struct ProfileParameters {
    format: Option<String>,
    since: Option<String>,
    version: Option<String>,
    idle: Option<bool>,
}

fn bad(message: String) -> Response {
    (StatusCode::BAD_REQUEST, message + "\n").into_response()
}

async fn profile_of(
    State(board): State<Board>,
    Path((namespace, name, kind)): Path<(String, String, String)>,
    Query(query): Query<ProfileParameters>,
) -> Response {
    let Some(kind) = StackKind::ALL.iter().find(|known| known.as_str() == kind).copied() else {
        let kinds: Vec<&str> = StackKind::ALL.iter().map(|kind| kind.as_str()).collect();
        return (StatusCode::NOT_FOUND, format!("no profile {kind:?}; there are: {}\n", kinds.join(", "))).into_response();
    };
    let since = match query.since.as_deref().map_or(Ok(Duration::from_secs(300)), humantime::parse_duration) {
        Ok(since) => since,
        Err(error) => return bad(format!("since: {error}; write it like 30s, 5m, 1h")),
    };
    let published = board.read();
    let namespace = if namespace == "-" { "" } else { &namespace };
    let version = query.version.as_deref();
    let idle = query.idle.unwrap_or(false);
    let query_profile = ProfileQuery { namespace, name: &name, version, kind, since, idle };
    let Some(found) = published.snapshot.profile(&query_profile) else {
        return (StatusCode::NOT_FOUND, "no such service, or no window yet; /api/v1/services lists them\n")
            .into_response();
    };
    let found = with_values(found, version);
    match query.format.as_deref().unwrap_or("svg") {
        "folded" => typed("text/plain; charset=utf-8", profile::folded(&found)),
        "pprof" => match profile::pprof(&found) {
            Ok(bytes) => {
                let mut response = typed("application/octet-stream", bytes);
                response.headers_mut().insert(
                    header::CONTENT_DISPOSITION,
                    HeaderValue::from_static("attachment; filename=\"profile.pb.gz\""),
                );
                response
            }
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
        },
        "svg" => match profile::svg(&found) {
            Ok(svg) => typed("image/svg+xml", svg),
            Err(error) => (StatusCode::NOT_FOUND, format!("{error:#}\n")).into_response(),
        },
        other => bad(format!("no format {other:?}; there are: svg, pprof, folded")),
    }
}

fn with_values(found: WindowProfile, version: Option<&str>) -> profile::Profile {
    profile::Profile {
        service: Service {
            name: found.name,
            namespace: found.namespace,
            version: version.unwrap_or_default().to_owned(),
        },
        kind: found.kind,
        start_unix_ns: found.start_unix_ns,
        duration_ns: found.duration_ns,
        period: 0,
        samples: found
            .samples
            .into_iter()
            .map(|sample| (sample.stack, i64::try_from(sample.value).unwrap_or(i64::MAX)))
            .collect(),
    }
}
