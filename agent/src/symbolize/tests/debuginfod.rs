//! A server of debug files on the loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::separate::{Built, config, lines, look_up};
use super::{resolve, start_program, stop};
use crate::symbolize::{DebugFile, DebuginfodConfig, Fetched, Symbolizer, SymbolizerConfig};

struct Server {
    url: String,
    requests: Arc<AtomicU64>,
}

impl Server {
    /// Answers every request by a function of its path; it lives as long as the test's process.
    fn start(answer: impl Fn(&str, TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut line = String::new();
                let mut reader = BufReader::new(&stream);
                reader.read_line(&mut line).unwrap();
                let mut header = String::new();
                while reader.read_line(&mut header).is_ok_and(|got| got > 2) {
                    header.clear();
                }
                counter.fetch_add(1, Ordering::Relaxed);
                answer(line.split(' ').nth(1).unwrap_or_default(), stream);
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

fn respond(mut stream: TcpStream, status: &str, length: usize, body: &[u8]) {
    // A client that hangs up is one of the cases.
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let _ = stream.write_all(body);
}

fn settings(url: &str, cache: &Path) -> SymbolizerConfig {
    SymbolizerConfig {
        debuginfod: DebuginfodConfig {
            urls: vec![url.to_owned()],
            cache: cache.join("cache"),
            timeout: Duration::from_secs(5),
            ..DebuginfodConfig::default()
        },
        ..config(Path::new("/nowhere"))
    }
}

/// Looks at an address until a request has ended; what was said first and last.
fn until_answered(built: &Built, config: SymbolizerConfig) -> (String, String, Symbolizer) {
    let (mut child, address) = start_program(&built.program);
    let mut symbolizer = Symbolizer::new(config);
    let began = Instant::now();
    let first = lines(&resolve(&mut symbolizer, child.id(), vec![address]));
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "nobody waits for a server"
    );
    let ended = |symbolizer: &Symbolizer| {
        let stats = symbolizer.stats();
        Fetched::ALL
            .iter()
            .map(|result| stats.fetched(*result))
            .sum::<u64>()
            > 0
    };
    while !ended(&symbolizer) {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(100));
    let last = lines(&resolve(&mut symbolizer, child.id(), vec![address]));
    stop(&mut child);
    (first, last, symbolizer)
}

#[test]
fn lines_come_once_the_file_was_fetched() {
    let built = Built::new(&[]);
    let expected = look_up(&built.whole, config(Path::new("/nowhere"))).0;
    let file = std::fs::read(&built.debug).unwrap();
    let path = format!("/buildid/{}/debuginfo", built.id);
    let server = Server::start(move |asked, stream| {
        assert_eq!(asked, path);
        // Later than the first look-up.
        std::thread::sleep(Duration::from_millis(300));
        respond(stream, "200 OK", file.len(), &file);
    });
    let dir = tempfile::tempdir().unwrap();
    let (first, last, symbolizer) = until_answered(&built, settings(&server.url, dir.path()));
    assert_eq!((&*first, &last), ("? ?:0", &expected[0]));
    let stats = symbolizer.stats();
    assert_eq!(
        (
            stats.fetched(Fetched::Fetched),
            stats.debug_files(DebugFile::Debuginfod)
        ),
        (1, 1)
    );
    // The next agent finds it on disk.
    let (frames, stats) = look_up(&built.program, settings(&server.url, dir.path()));
    assert_eq!(frames, expected);
    assert_eq!(
        (stats.debug_files(DebugFile::Debuginfod), server.requests()),
        (1, 1)
    );
}

#[test]
fn every_failure_has_its_counter_and_is_not_repeated() {
    let built = Built::new(&[]);
    let other = std::fs::read(&Built::new(&["-O2"]).debug).unwrap();
    let length = other.len();
    let cases: [(&str, usize, Vec<u8>, Fetched); 6] = [
        ("404 Not Found", 0, Vec::new(), Fetched::NotFound),
        ("500 No", 0, Vec::new(), Fetched::Failed),
        ("200 OK", length, other, Fetched::Mismatch),
        ("200 OK", 9, b"no ELF...".to_vec(), Fetched::Mismatch),
        ("200 OK", 4096, b"cut short".to_vec(), Fetched::Failed),
        ("200 OK", 1 << 30, vec![0; 4096], Fetched::TooLarge),
    ];
    for (status, length, body, expected) in cases {
        let server = Server::start(move |_, stream| respond(stream, status, length, &body));
        let dir = tempfile::tempdir().unwrap();
        let (first, last, mut symbolizer) = until_answered(&built, settings(&server.url, dir.path()));
        assert_eq!((&*first, &*last), ("? ?:0", "? ?:0"), "{status} {expected:?}");
        assert_eq!(symbolizer.stats().fetched(expected), 1, "{status} {expected:?}");
        symbolizer.forget();
        let (mut child, address) = start_program(&built.program);
        resolve(&mut symbolizer, child.id(), vec![address]);
        stop(&mut child);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(server.requests(), 1, "{status} {expected:?}");
        let left = std::fs::read_dir(dir.path().join("cache")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{status} {expected:?}");
    }
}

#[test]
fn endless_and_silent_servers_are_left() {
    let built = Built::new(&[]);
    let endless = Server::start(|_, mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(&[7; 65536]).is_ok() {}
    });
    let dir = tempfile::tempdir().unwrap();
    let mut limited = settings(&endless.url, dir.path());
    limited.debuginfod.max_file_bytes = 1 << 20;
    let stats = until_answered(&built, limited).2.stats();
    assert_eq!(stats.fetched(Fetched::TooLarge), 1);
    let silent = Server::start(|_, stream| {
        std::thread::sleep(Duration::from_secs(60));
        drop(stream);
    });
    let mut brief = settings(&silent.url, dir.path());
    brief.debuginfod.timeout = Duration::from_millis(300);
    let stats = until_answered(&built, brief).2.stats();
    assert_eq!(stats.fetched(Fetched::Failed), 1);
    // Nobody listens, and nothing can be written.
    let stats = until_answered(&built, settings("http://127.0.0.1:1", dir.path()))
        .2
        .stats();
    assert_eq!(stats.fetched(Fetched::Failed), 1);
    let file = std::fs::read(&built.debug).unwrap();
    let server = Server::start(move |_, stream| respond(stream, "200 OK", file.len(), &file));
    std::fs::write(dir.path().join("file"), "").unwrap();
    let stats = until_answered(&built, settings(&server.url, &dir.path().join("file")))
        .2
        .stats();
    assert_eq!(stats.fetched(Fetched::CacheFailed), 1);
}
