//! From what is known of a process to its service: the first rule that answers (DESIGN.md section 5).

use super::{Service, ServiceInfo, ServiceRule, container_of, program_name, unit_of};
use crate::host::ProcessFacts;

/// A service and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name, namespace, and the release where somebody tells it; the executable is asked later.
    pub service: Service,
    /// What else is known.
    pub info: ServiceInfo,
    /// Named by somebody (a rule, OpenTelemetry, a unit, a container), not only by the program's file.
    pub explicit: bool,
}

/// Decodes the percent-encoding of `OTEL_RESOURCE_ATTRIBUTES` (OpenTelemetry specification, resource SDK).
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let raw = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = raw.get(at) {
        let hex = raw
            .get(at + 1..at + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        if *byte == b'%'
            && let Some(value) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())
        {
            bytes.push(value);
            at += 3;
        } else {
            bytes.push(*byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn attribute(attributes: &str, name: &str) -> Option<String> {
    attributes.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| percent_decode(value.trim()))
    })
}

/// What may become a label.
pub(super) fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}

/// Names a process. What the first rule that matches leaves out is found as if there were none.
#[must_use]
pub fn identify(facts: &ProcessFacts, rules: &[ServiceRule]) -> Identity {
    let rule = rules.iter().find(|rule| rule.matches(facts));
    let container = facts.cgroups.iter().find_map(|path| container_of(path));
    let unit = facts.cgroups.iter().find_map(|path| unit_of(path));
    let attributes = facts.otel.resource_attributes.as_deref().unwrap_or_default();
    let otel_name = facts
        .otel
        .service_name
        .clone()
        .or_else(|| attribute(attributes, "service.name"));
    let (name, source, explicit) = if let Some(rule) = rule {
        (rule.name.clone(), "rule", true)
    } else if let Some(name) = otel_name {
        (name, "otel", true)
    } else if let Some(name) = container.as_ref().and_then(|container| container.name.clone()) {
        (name, "container", true)
    } else if let (Some(unit), Some("podman")) =
        (&unit, container.as_ref().map(|container| container.runtime))
    {
        // Podman's containers that are units (Quadlet) run below their unit; other runtimes' below the runtime's.
        (unit.clone(), "systemd", true)
    } else if container.is_some() {
        // Without the runtime's metadata an id is no name; the program is, and the container is explicit all the same.
        (
            program_name(&facts.exe, &facts.cmdline, &facts.comm),
            "container",
            true,
        )
    } else if let Some(unit) = &unit {
        (unit.clone(), "systemd", true)
    } else {
        (
            program_name(&facts.exe, &facts.cmdline, &facts.comm),
            "program",
            false,
        )
    };
    let namespace = rule
        .and_then(|rule| rule.namespace.clone())
        .or_else(|| attribute(attributes, "service.namespace"));
    let version = rule
        .and_then(|rule| rule.version.clone())
        .or_else(|| attribute(attributes, "service.version"));
    let container_id = container
        .as_ref()
        .map(|container| container.id.clone())
        .unwrap_or_default();
    Identity {
        service: Service {
            name: bounded(&name),
            namespace: bounded(&namespace.unwrap_or_default()),
            version: bounded(&version.unwrap_or_default()),
        },
        info: ServiceInfo {
            source: source.to_owned(),
            container_id,
            container_runtime: container
                .map(|container| container.runtime.to_owned())
                .unwrap_or_default(),
            unit: unit.unwrap_or_default(),
            executable: facts.exe.clone(),
            ..ServiceInfo::default()
        },
        explicit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::OtelEnv;

    #[test]
    fn the_first_rule_that_matches_comes_before_everything() {
        let rules = [
            "name = 'no'\ncomm = 'other'",
            "name = 'shop'\nversion = '7'\ncomm = 'orders'",
            "name = 'late'\nnamespace = 'x'\ncomm = '*'",
        ];
        let rules = rules.map(|text| toml::from_str::<ServiceRule>(text).unwrap());
        let mut facts = ProcessFacts {
            comm: "orders".into(),
            exe: "/srv/orders".into(),
            otel: OtelEnv {
                service_name: Some("otel".into()),
                resource_attributes: Some("service.namespace=eu,service.version=1".into()),
            },
            ..ProcessFacts::default()
        };
        let names = |facts: &ProcessFacts| {
            let Identity {
                service,
                info,
                explicit,
            } = identify(facts, &rules);
            assert!(explicit && info.source == "rule");
            [service.namespace, service.name, service.version]
        };
        assert_eq!(names(&facts), ["eu", "shop", "7"]);
        facts.comm = "cart".into();
        assert_eq!(names(&facts), ["x", "late", "1"]);
        assert_eq!(identify(&facts, &rules[..2]).info.source, "otel");
    }

    #[test]
    fn open_telemetry_comes_before_the_unit_and_the_program() {
        let mut facts = ProcessFacts {
            exe: "/srv/bin/orders".into(),
            cgroups: vec!["/system.slice/shop.service".into()],
            otel: OtelEnv {
                service_name: Some("orders".into()),
                resource_attributes: Some(
                    "service.namespace=shop%20eu, service.version=1.2%2C3,service.name=x".into(),
                ),
            },
            ..ProcessFacts::default()
        };
        let identity = identify(&facts, &[]);
        assert_eq!(
            identity.service,
            Service {
                name: "orders".into(),
                namespace: "shop eu".into(),
                version: "1.2,3".into()
            }
        );
        facts.otel.service_name = None;
        assert_eq!(identify(&facts, &[]).service.name, "x");
        facts.otel = OtelEnv::default();
        assert_eq!(
            (
                identify(&facts, &[]).service.name.as_str(),
                identify(&facts, &[]).explicit
            ),
            ("shop", true)
        );
        facts.cgroups.clear();
        assert_eq!(
            (
                identify(&facts, &[]).service.name.as_str(),
                identify(&facts, &[]).explicit
            ),
            ("orders", false)
        );
    }
}
