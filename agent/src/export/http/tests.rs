use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request};
use tokio::sync::oneshot;
use tower::ServiceExt;

use super::*;
use crate::aggregate::fixture;
use crate::load::status::Verdict;
use crate::telemetry::{AllocTelemetry, FirstStacks, GovernorTelemetry, ProbeTelemetry, UnwindTelemetry};

/// Compares with a file in `fixtures/golden`; `UPDATE_GOLDEN=1` writes it instead.
pub(in crate::export) fn assert_golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("make the directory");
        std::fs::write(&path, text).expect("write the golden file");
        return;
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file; make it with UPDATE_GOLDEN=1");
    for (number, (is, should)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(is, should, "{name}:{}", number + 1);
    }
    assert_eq!(text.len(), golden.len(), "{name}: one is longer");
}

pub(in crate::export) fn probes() -> Vec<ProbeStatus> {
    let probe = |probe: &str, program: &str, verdict, reason: &str| ProbeStatus {
        probe: probe.into(),
        program: program.into(),
        verdict,
        reason: reason.into(),
        attached: verdict == Verdict::Ok,
    };
    vec![
        probe("wait", "wait_switch", Verdict::Ok, ""),
        probe("wait", "wait_wakeup", Verdict::Ok, ""),
        probe(
            "disk",
            "disk_done",
            Verdict::Unsupported,
            "needs BTF field request.rq_disk <gone>",
        ),
        probe("syscall", "syscall_exit", Verdict::Disabled, "by configuration"),
    ]
}

fn alloc() -> AllocTelemetry {
    AllocTelemetry {
        service: "shop".to_owned(),
        namespace: "prod".to_owned(),
        mode: "full".to_owned(),
        processes: 2,
        allocators: vec!["glibc (/usr/lib/libc.so.6)".to_owned()],
        refused: Vec::new(),
        duty: 1.0,
        slowdown: 1.25,
        memory_limit_bytes: Some(1 << 30),
    }
}

pub(in crate::export) fn telemetry() -> Telemetry {
    let probe = ProbeTelemetry {
        runs: 1_000_000,
        cost_seconds: 0.25,
        sampling_ratio: 1.0,
    };
    let name = |name: &str| name.to_owned();
    Telemetry {
        version: name("0.1.0"),
        revision: name("abcdef0"),
        start_unix_seconds: 1_700_000_000.0,
        kernel: name("6.18.0"),
        probes: [(name("wait"), probe)].into(),
        lost: [((name("wait"), name("ring_full")), 5)].into(),
        unwind: [(name("complete"), 90), (name("no_mapping"), 10)].into(),
        first_stacks: first_stacks(),
        unwind_tables: UnwindTelemetry {
            built: 12,
            refused: [(name("no_information"), 1)].into(),
            broken_functions: 2,
            unsupported_rows: 19,
            build_seconds: 0.5,
            row_bytes: 2 << 20,
        },
        symbolize: [(name("elf"), 700)].into(),
        owners: [(name("own"), 90), (name("no_symbol"), 10)].into(),
        debug_file_requests: [(name("fetched"), 2), (name("not_found"), 9)].into(),
        debug_files: [(name("build_id"), 3), (name("none"), 12)].into(),
        wait_samples: 120,
        wait_sample_budget: 100.0,
        symbol_bytes: 1 << 20,
        cpu_seconds: 1.5,
        resident_bytes: 40 << 20,
        bpf_map_bytes: 60 << 20,
        memory_limit_bytes: 256 << 20,
        memory_sheds: 0,
        ticks: 2,
        tick_seconds: 0.004,
        tick_seconds_total: 0.009,
        alloc: vec![alloc()],
        governor: GovernorTelemetry {
            level: 1,
            level_name: name("fewer stacks"),
            reason: name("cost above target"),
            syscall_duty: 0.125,
            cost_ratio: 0.004,
            cost_limit_ratio: 0.01,
            killed: false,
        },
    }
}

fn sources(snapshot: Arc<Snapshot>) -> Sources {
    Sources {
        snapshot: watch::channel(snapshot).1,
        telemetry: watch::channel(Arc::new(telemetry())).1,
        probes: watch::channel(Arc::new(probes())).1,
    }
}

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

fn first_stacks() -> FirstStacks {
    let mut first = FirstStacks::default();
    for seconds in [0.25, 0.5, 1.5, 90.0] {
        first.add(seconds);
    }
    first
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
