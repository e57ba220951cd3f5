//! The HTTP server: routes, headers, shutdown. Everything is read-only.
//!
//! [`router`] makes the service and [`serve`] puts it on a listener; TLS and authentication go between the two.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::metrics::{self, Scrapes};
use super::request::{Format, ProfileRequest};
use super::{api, pages, status};
use crate::aggregate::Snapshot;
use crate::load::status::ProbeStatus;
use crate::telemetry::Telemetry;

/// How long requests that are being answered may take once the agent stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Pages: inline style, nothing else, nowhere else.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Flame graphs bring their script with them.
const SVG_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                          base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where the server reads from: the pipeline publishes, requests only look.
#[derive(Clone)]
pub struct Sources {
    /// The last snapshot.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// The agent's own numbers.
    pub telemetry: watch::Receiver<Arc<Telemetry>>,
    /// One verdict a program.
    pub probes: watch::Receiver<Arc<Vec<ProbeStatus>>>,
}

impl Sources {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    fn telemetry(&self) -> Arc<Telemetry> {
        Arc::clone(&self.telemetry.borrow())
    }

    fn probes(&self) -> Arc<Vec<ProbeStatus>> {
        Arc::clone(&self.probes.borrow())
    }
}

#[derive(Clone)]
struct Server {
    sources: Sources,
    scrapes: Arc<ScrapeStats>,
}

#[derive(Default)]
struct ScrapeStats {
    count: AtomicU64,
    last_ns: AtomicU64,
}

/// All routes.
pub fn router(sources: Sources) -> Router {
    let server = Server {
        sources,
        scrapes: Arc::default(),
    };
    Router::new()
        .route("/", get(index))
        .route("/services/{namespace}/{service}/profile/{kind}", get(profile))
        .route("/api/v1/services", get(services))
        .route("/api/v1/pools", get(pools))
        .route("/api/v1/oom_kills", get(oom_kills))
        .route("/api/v1/allocations", get(allocations))
        .route("/api/v1/descriptors", get(descriptors))
        .route("/metrics", get(scrape))
        .route("/status", get(agent_status))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(map_response(secure))
        .with_state(server)
}

/// Serves until `shutdown` completes, then lets requests finish for up to five seconds.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let (stopping, mut stopped) = watch::channel(false);
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        let _ = stopping.send(true);
    });
    tokio::select! {
        served = server.into_future() => served.context("serve HTTP"),
        () = async {
            // An error means that the server is gone, and then the other branch ends.
            if stopped.wait_for(|stopped| *stopped).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(DRAIN).await;
        } => Ok(()),
    }
}

/// An error that a person reads.
pub(super) fn refuse(status: StatusCode, text: impl Into<String>) -> Response {
    let mut text = text.into();
    text.push('\n');
    (status, text).into_response()
}

async fn secure(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(PAGE_POLICY));
    response
}

async fn not_found() -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        "not found; there is / /metrics /status /api/v1/services /api/v1/pools /api/v1/descriptors /api/v1/oom_kills \
         /healthz /readyz \
         and /services/{namespace or -}/{service}/profile/{wait|cpu|syscall|memory|conn|fd}",
    )
}

async fn not_allowed() -> Response {
    refuse(
        StatusCode::METHOD_NOT_ALLOWED,
        "only GET and HEAD: this server changes nothing",
    )
}

async fn index(State(server): State<Server>) -> Response {
    let sources = &server.sources;
    pages::services(&sources.snapshot(), &sources.telemetry(), &sources.probes()).into_response()
}

async fn services(State(server): State<Server>) -> Response {
    axum::Json(api::services(&server.sources.snapshot())).into_response()
}

async fn pools(State(server): State<Server>) -> Response {
    axum::Json(super::pools::pools(&server.sources.snapshot())).into_response()
}

async fn oom_kills(State(server): State<Server>) -> Response {
    axum::Json(super::oom::oom_kills(&server.sources.snapshot())).into_response()
}

async fn allocations(State(server): State<Server>) -> Response {
    let (snapshot, telemetry) = (server.sources.snapshot(), server.sources.telemetry());
    axum::Json(super::allocations::allocations(&snapshot, &telemetry)).into_response()
}

async fn descriptors(State(server): State<Server>) -> Response {
    axum::Json(super::descriptors::descriptors(&server.sources.snapshot())).into_response()
}

async fn ready(State(server): State<Server>) -> Response {
    if server.sources.snapshot().ticks > 0 {
        "ok\n".into_response()
    } else {
        refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the first window is not finished",
        )
    }
}

async fn agent_status(
    State(server): State<Server>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let sources = &server.sources;
    let status = status::Status::new(
        &sources.snapshot(),
        &sources.telemetry(),
        &sources.probes(),
        now_unix_ns(),
    );
    let accepts_json = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    match query.as_deref() {
        Some("format=json") => axum::Json(status).into_response(),
        Some("format=text") => status.text().into_response(),
        None | Some("") if accepts_json => axum::Json(status).into_response(),
        None | Some("") => status.text().into_response(),
        Some(_) => refuse(
            StatusCode::BAD_REQUEST,
            "format is text or json, and there is nothing else to ask for",
        ),
    }
}

async fn scrape(State(server): State<Server>) -> Response {
    let work = move || {
        let begin = Instant::now();
        let stats = &server.scrapes;
        let scrapes = Scrapes {
            count: stats.count.load(Ordering::Relaxed),
            last_ns: stats.last_ns.load(Ordering::Relaxed),
        };
        let sources = &server.sources;
        let text = metrics::render(
            &sources.snapshot(),
            &sources.telemetry(),
            &sources.probes(),
            scrapes,
            now_unix_ns(),
        );
        stats.count.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        stats.last_ns.store(took, Ordering::Relaxed);
        ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
    };
    off_the_loop(work).await
}

async fn profile(
    State(server): State<Server>,
    Path((namespace, service, kind)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let request = match ProfileRequest::parse(namespace, service, &kind, query.as_deref().unwrap_or("")) {
        Ok(request) => request,
        Err(text) => return refuse(StatusCode::BAD_REQUEST, text),
    };
    let snapshot = server.sources.snapshot();
    if snapshot.ticks == 0 {
        return refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the first window is not finished",
        );
    }
    let work = move || {
        let Some(profile) = request.profile(&snapshot) else {
            return refuse(StatusCode::NOT_FOUND, request.unknown());
        };
        match request.render(&profile) {
            Ok(body) => profile_response(&request, body),
            Err(error) => {
                tracing::error!("render a profile: {error:#}");
                refuse(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the profile could not be rendered; see the agent's log",
                )
            }
        }
    };
    off_the_loop(work).await
}

fn profile_response(request: &ProfileRequest, body: Vec<u8>) -> Response {
    let content_type = match request.format {
        Format::Svg => "image/svg+xml",
        Format::Pprof => "application/octet-stream",
        Format::Folded => "text/plain; charset=utf-8",
    };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    match request.format {
        Format::Svg => {
            headers.insert(
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static(SVG_POLICY),
            );
        }
        Format::Pprof => {
            let disposition = format!("attachment; filename=\"{}\"", request.file_name());
            if let Ok(disposition) = HeaderValue::try_from(disposition) {
                headers.insert(header::CONTENT_DISPOSITION, disposition);
            }
        }
        Format::Folded => {}
    }
    response
}

/// Rendering can take tens of milliseconds on large hosts; other requests do not wait for it.
async fn off_the_loop(work: impl FnOnce() -> Response + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(work).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!("answer a request: {error}");
            refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "an error of the agent; see its log",
            )
        }
    }
}

fn now_unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests;
