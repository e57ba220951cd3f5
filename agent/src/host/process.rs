//! What `/proc/PID` tells of a process. Of its environment only OpenTelemetry's two variables are ever kept.

use std::fs;
use std::io;

use super::Host;

/// The variables by which OpenTelemetry names a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtelEnv {
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource_attributes: Option<String>,
}

/// A process as it was when it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Its id.
    pub pid: u32,
    /// The process that started it, 0 where that one is gone.
    pub parent: u32,
    /// Start in clock ticks after boot: with the id, it identifies a process.
    pub start_time: u64,
    /// Kernel's name of its main thread.
    pub comm: String,
    /// Path of its executable, without the mark of a deleted file.
    pub exe: String,
    /// Its arguments, at most 4 KiB.
    pub cmdline: Vec<String>,
    /// Paths of its cgroups, one a hierarchy.
    pub cgroups: Vec<String>,
    /// OpenTelemetry's names.
    pub otel: OtelEnv,
}

impl Host {
    /// Reads a process. One that vanishes half-way is an error, never half an answer.
    pub fn process(&self, pid: u32) -> io::Result<ProcessFacts> {
        let below = |name: &str| format!("proc/{pid}/{name}");
        let (parent, before) = self.parent_and_start(pid)?;
        let exe = fs::read_link(self.path(&below("exe")))?
            .to_string_lossy()
            .into_owned();
        let cmdline = self.read(&below("cmdline"), 4096)?;
        let facts = ProcessFacts {
            pid,
            parent,
            start_time: before,
            comm: self.text(&below("comm"))?.trim_end().to_owned(),
            exe: exe.strip_suffix(" (deleted)").unwrap_or(&exe).to_owned(),
            cmdline: cmdline
                .split(|byte| *byte == 0)
                .filter(|part| !part.is_empty())
                .map(|part| String::from_utf8_lossy(part).into_owned())
                .collect(),
            cgroups: cgroups(&self.text(&below("cgroup"))?),
            otel: otel(&self.read(&below("environ"), 128 << 10)?),
        };
        if self.parent_and_start(pid)?.1 != before {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the process id was taken over",
            ));
        }
        Ok(facts)
    }

    fn parent_and_start(&self, pid: u32) -> io::Result<(u32, u64)> {
        let stat = self.text(&format!("proc/{pid}/stat"))?;
        // The name stands in parentheses and may hold any character, so fields count from the last one.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_ascii_whitespace()
            .collect();
        let parent = fields.get(1).and_then(|field| field.parse().ok());
        let start = fields.get(19).and_then(|field| field.parse().ok());
        parent
            .zip(start)
            .ok_or_else(|| io::Error::other("unexpected form of /proc/PID/stat"))
    }
}

/// Paths of `/proc/PID/cgroup`: `ID:CONTROLLERS:PATH`, where a path may hold colons.
pub(crate) fn cgroups(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .map(str::to_owned)
        .collect()
}

fn otel(environ: &[u8]) -> OtelEnv {
    let value = |name: &str| {
        environ.split(|byte| *byte == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            (!value.is_empty()).then(|| String::from_utf8_lossy(value).into_owned())
        })
    };
    OtelEnv {
        service_name: value("OTEL_SERVICE_NAME"),
        resource_attributes: value("OTEL_RESOURCE_ATTRIBUTES"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_variables_are_kept() {
        let env =
            otel(b"SECRET=x\0OTEL_SERVICE_NAME=shop\0XOTEL_SERVICE_NAME=no\0OTEL_RESOURCE_ATTRIBUTES=\0");
        assert_eq!(
            env,
            OtelEnv {
                service_name: Some("shop".into()),
                resource_attributes: None
            }
        );
    }
}
