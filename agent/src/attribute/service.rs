//! What a service is called.

use std::collections::BTreeSet;

/// The identity of a service's series: OpenTelemetry's `service.name`, `service.namespace` and `service.version`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// `service_name`.
    pub name: String,
    /// `service_namespace`; empty where there is none.
    pub namespace: String,
    /// `service_version`: the release; empty where nothing tells it.
    pub version: String,
}

/// What is known of a service beyond its identity; only `tieback_service_info` and the API show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceInfo {
    /// What named it: `rule`, `otel`, `kubernetes`, `container`, `systemd`, `program`, `kernel`.
    pub source: String,
    /// Container id, if it runs in one.
    pub container_id: String,
    /// Container runtime (`docker`, `containerd`, `cri-o`, `podman`).
    pub container_runtime: String,
    /// systemd unit.
    pub unit: String,
    /// Executable of its newest process.
    pub executable: String,
    /// Language runtime as far as the executable tells (`native`, `go`, `jvm`, `node`, `python`, `ruby`, ...).
    pub runtime: String,
    /// Live processes.
    pub pids: BTreeSet<u32>,
}
