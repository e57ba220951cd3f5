use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::aggregate::fixture::{self, SECOND};
use crate::export::http::tests::facts::{assert_golden, probes, telemetry};

fn text(snapshot: &Snapshot) -> String {
    let scrapes = Scrapes {
        count: 3,
        last_ns: 1_250_000,
    };
    render(snapshot, &telemetry(), &probes(), scrapes, 1_700_000_025 * SECOND)
}

#[test]
fn golden() {
    assert_golden("metrics.txt", &text(&fixture::snapshot()));
}

/// What a parser of the format would refuse: metrics in pieces, samples twice, samples without a type.
#[test]
fn metrics_are_in_one_piece_and_samples_unique() {
    let text = text(&fixture::snapshot());
    let mut types: HashMap<&str, &str> = HashMap::new();
    let mut samples = HashSet::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(types.insert(name, kind), None, "{name} comes in pieces");
            current = name;
        } else if !line.starts_with('#') {
            let (sample, _) = line.rsplit_once(' ').expect("a value");
            let name = sample.split('{').next().expect("a name");
            let suffix = name
                .strip_prefix(current)
                .expect("a sample of the metric that was begun");
            let expected: &[&str] = if types[current] == "histogram" {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            assert!(expected.contains(&suffix), "{line}");
            assert_eq!(
                types[current] == "counter",
                current.ends_with("_total"),
                "{current}"
            );
            assert!(samples.insert(sample), "{sample} twice");
        }
    }
    assert!(samples.len() > 200);
}

#[test]
fn the_budget_is_kept_and_counted() {
    let complete = fixture::snapshot();
    let mut capped = (*complete).clone();
    for service in &mut capped.services {
        service.admitted = crate::aggregate::metric::MetricSet::default();
    }
    capped
        .bounds
        .series_capped
        .insert(crate::aggregate::Metric::CodeWait, 12);
    let text = text(&capped);
    assert!(!text.contains("service_name="));
    assert!(text.contains("tieback_series_capped_total{metric=\"tieback_code_wait_seconds_total\"} 12\n"));
}

/// A thousand services with 140 series each; the time is printed for releases and only guards against something
/// quadratic here, since tests run unoptimised on busy machines.
#[test]
fn large_hosts_render_fast() {
    let one = fixture::snapshot();
    let mut large = (*one).clone();
    let template = large
        .services
        .iter()
        .max_by_key(|s| s.totals.processes)
        .expect("one")
        .clone();
    let each: usize = crate::aggregate::Metric::ALL
        .iter()
        .map(|&m| template.series(m))
        .sum();
    large.services = (0..140_000 / each)
        .map(|n| {
            let mut service = template.clone();
            service.service = fixture::service(&format!("service-{n}"));
            service
        })
        .collect();
    large.series = large.services.len() * each;
    let large = Arc::new(large);
    let begin = Instant::now();
    let text = text(&large);
    let took = begin.elapsed();
    println!("{} series, {} bytes: {took:?}", large.series, text.len());
    assert!(text.lines().filter(|line| line.contains("service_name=")).count() == large.series);
    assert!(took.as_secs() < 10, "{took:?}");
}
