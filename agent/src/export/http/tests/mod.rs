pub(in crate::export) mod facts;

use std::io::{Read, Write};
use std::net::TcpStream;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request};
use tokio::sync::oneshot;
use tower::ServiceExt;

use self::facts::{assert_golden, probes, sources, telemetry};
use super::*;
use crate::aggregate::fixture;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("text")
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("text"))
    }
}

async fn ask_of(router: Router, method: Method, path: &str, accept: Option<&str>) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(accept) = accept {
        request = request.header(header::ACCEPT, accept);
    }
    let response = router
        .oneshot(request.body(Body::empty()).expect("a request"))
        .await
        .expect("infallible");
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("a body").to_vec();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

async fn get_path(path: &str) -> Answer {
    ask_of(router(sources(fixture::snapshot())), Method::GET, path, None).await
}

#[tokio::test]
async fn every_page_answers_with_its_type_and_safe_headers() {
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/metrics", metrics::CONTENT_TYPE),
        ("/status", "text/plain; charset=utf-8"),
        ("/status?format=json", "application/json"),
        ("/api/v1/services", "application/json"),
        ("/api/v1/pools", "application/json"),
        ("/healthz", "text/plain; charset=utf-8"),
        ("/readyz", "text/plain; charset=utf-8"),
        ("/services/prod/shop/profile/wait", "image/svg+xml"),
        (
            "/services/prod/shop/profile/cpu?format=pprof",
            "application/octet-stream",
        ),
        (
            "/services/prod/shop/profile/conn?format=folded",
            "text/plain; charset=utf-8",
        ),
    ] {
        let answer = get_path(path).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (StatusCode::OK, content_type),
            "{path}"
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        let scripts = answer.header("content-security-policy").contains("script-src");
        assert_eq!(scripts, content_type == "image/svg+xml", "{path}");
        assert!(!answer.body.is_empty(), "{path}");

        let head = ask_of(router(sources(fixture::snapshot())), Method::HEAD, path, None).await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0), "{path}");
        let post = ask_of(router(sources(fixture::snapshot())), Method::POST, path, None).await;
        assert_eq!(
            (post.status, post.header("allow")),
            (StatusCode::METHOD_NOT_ALLOWED, "GET,HEAD"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn the_list_of_services_is_golden() {
    let page = get_path("/").await;
    assert_golden("services.html", &page.text().replace("><", ">\n<"));
}

#[tokio::test]
async fn the_status_is_golden() {
    let snapshot = fixture::snapshot();
    let now = snapshot.at_unix_ns + 5_000_000_000;
    let status = status::Status::new(&snapshot, &telemetry(), &probes(), now);
    assert_golden("status.txt", &status.text());
    assert_golden(
        "status.json",
        &serde_json::to_string_pretty(&status).expect("JSON"),
    );
}

#[tokio::test]
async fn the_api_is_golden() {
    let json: serde_json::Value =
        serde_json::from_slice(&get_path("/api/v1/services").await.body).expect("JSON");
    assert_golden(
        "services.json",
        &serde_json::to_string_pretty(&json).expect("JSON"),
    );
}

#[tokio::test]
async fn profiles_hold_the_scaled_stacks() {
    let folded = get_path("/services/prod/shop/profile/wait?format=folded&since=1h").await;
    let total: u64 = folded
        .text()
        .lines()
        .map(|line| {
            line.rsplit(' ')
                .next()
                .and_then(|value| value.parse().ok())
                .unwrap_or(0)
        })
        .sum::<u64>();
    assert_eq!(
        total,
        2 * (2 + 1) * fixture::SECOND,
        "disk and lock, without idle:\n{}",
        folded.text()
    );
    let idle = get_path("/services/prod/shop/profile/wait?format=folded&idle=true").await;
    assert!(idle.text().contains("worker::park") && !folded.text().contains("worker::park"));
    let pprof = get_path("/services/prod/shop/profile/cpu?format=pprof&version=1.2").await;
    assert_eq!(pprof.body[..2], [0x1f, 0x8b], "gzip");
    assert_eq!(
        pprof.header("content-disposition"),
        "attachment; filename=\"shop.cpu.pb.gz\""
    );
}

#[tokio::test]
async fn strange_names_are_found_under_the_links_of_the_page() {
    let page = get_path("/").await;
    let link = page
        .text()
        .split('"')
        .find(|part| part.starts_with("/services/-/a%22b%5Cc%0A%3Cd%3E/profile/wait"))
        .expect("a link")
        .replace("&amp;", "&");
    assert_eq!(get_path(&link).await.status, StatusCode::OK);
}

#[tokio::test]
async fn errors_say_what_would_have_been_right() {
    for (path, status, text) in [
        (
            "/services/prod/shop/profile/heap",
            StatusCode::BAD_REQUEST,
            "wait, cpu, syscall, memory, conn, alloc, alloc_objects, alloc_live, fd",
        ),
        (
            "/services/prod/shop/profile/cpu?format=png",
            StatusCode::BAD_REQUEST,
            "svg, pprof, folded",
        ),
        (
            "/services/prod/shop/profile/cpu?since=x",
            StatusCode::BAD_REQUEST,
            "5m or 90s",
        ),
        (
            "/services/-/shop/profile/cpu",
            StatusCode::NOT_FOUND,
            "no service \"shop\" in namespace \"-\"",
        ),
        (
            "/services/prod/shop/profile/cpu?version=9",
            StatusCode::NOT_FOUND,
            "version \"9\"",
        ),
        ("/nothing", StatusCode::NOT_FOUND, "/metrics"),
        ("/status?format=xml", StatusCode::BAD_REQUEST, "text or json"),
    ] {
        let answer = get_path(path).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.text().contains(text), "{path}: {}", answer.text());
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
    }
}

#[tokio::test]
async fn nothing_is_ready_before_the_first_window() {
    let empty = || router(sources(Arc::default()));
    for (path, status) in [
        ("/readyz", StatusCode::SERVICE_UNAVAILABLE),
        ("/services/-/shop/profile/cpu", StatusCode::SERVICE_UNAVAILABLE),
        ("/healthz", StatusCode::OK),
        ("/", StatusCode::OK),
        ("/metrics", StatusCode::OK),
        ("/status", StatusCode::OK),
        ("/api/v1/services", StatusCode::OK),
    ] {
        assert_eq!(
            ask_of(empty(), Method::GET, path, None).await.status,
            status,
            "{path}"
        );
    }
}

#[tokio::test]
async fn status_follows_the_accept_header() {
    let status = |accept| {
        ask_of(
            router(sources(fixture::snapshot())),
            Method::GET,
            "/status",
            Some(accept),
        )
    };
    assert_eq!(
        status("application/json").await.header("content-type"),
        "application/json"
    );
    assert_eq!(
        status("text/plain").await.header("content-type"),
        "text/plain; charset=utf-8"
    );
}

#[tokio::test]
async fn scrapes_see_new_snapshots_and_count_themselves() {
    let (publish, snapshot) = watch::channel(Arc::new(Snapshot::default()));
    let router = router(Sources {
        snapshot,
        ..sources(Arc::default())
    });
    let scrape = || ask_of(router.clone(), Method::GET, "/metrics", None);
    let first = scrape().await;
    assert!(first.text().contains("\ntieback_scrapes_total 0\n") && !first.text().contains("service_name"));
    publish.send(fixture::snapshot()).expect("a receiver");
    let second = scrape().await;
    assert!(second.text().contains("\ntieback_scrapes_total 1\n") && second.text().contains("service_name"));
}

#[tokio::test]
async fn the_server_finishes_what_it_answers_and_stops() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, router(sources(fixture::snapshot())), async {
        let _ = stopped.await;
    }));
    let answer = tokio::task::spawn_blocking(move || {
        let mut client = TcpStream::connect(address).expect("connect");
        client
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .expect("send");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("receive");
        answer
    })
    .await
    .expect("no panic");
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"),
        "{answer}"
    );
    stop.send(()).expect("still serving");
    server.await.expect("no panic").expect("no error");
    assert!(TcpStream::connect(address).is_err());
}
