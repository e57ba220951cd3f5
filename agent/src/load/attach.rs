//! One hook at a time: load, attach, detach.

use std::collections::BTreeMap;
use std::io::Read as _;

use agent_ebpf::probe::{Attach, Hook};
use anyhow::{Context as _, Result, anyhow};
use aya::{
    Btf, Ebpf,
    programs::{
        BtfTracePoint, Iter, PerfEvent, Program, ProgramError, RawTracePoint,
        perf_event::{PerfEventConfig, PerfEventLink, PerfEventScope, SamplePolicy, SoftwareEvent},
        raw_trace_point::RawTracePointLink,
        tp_btf::BtfTracePointLink,
    },
};

use super::{Environment, sampler::Sampler, status::Verdict};

/// Links by probe; dropping one detaches it.
#[derive(Default)]
pub(super) struct Links(BTreeMap<&'static str, Vec<Link>>);

#[expect(dead_code, reason = "a link is held to be dropped")]
enum Link {
    Btf(BtfTracePointLink),
    Raw(RawTracePointLink),
    Perf(PerfEventLink),
    Iter,
    Run(Sampler),
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    ebpf.program_mut(name)
        .with_context(|| format!("the object has no program {name}"))
}

/// The last lines of a refusal, which is where the verifier says why.
fn refusal(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            tracing::debug!(%log, "verifier");
            if lines.is_empty() {
                // Nothing was verified: it is about rights.
                return explain(&anyhow!("the kernel refused it: {io_error}"));
            }
            let tail = lines[lines.len().saturating_sub(4)..].join(" | ");
            format!("the kernel refused it ({io_error}): {tail}")
        }
        other => explain(&anyhow!("{other}")),
    }
}

/// An error with what to do about it.
pub(super) fn explain(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    if text.contains("os error 1)") || text.contains("os error 13)") {
        return format!("{text}; it needs CAP_BPF and CAP_PERFMON");
    }
    text
}

/// Loads one program into the kernel.
pub(super) fn load(ebpf: &mut Ebpf, hook: &Hook, btf: &Btf) -> Result<(), (Verdict, String)> {
    let program = program(ebpf, hook.program).map_err(|error| (Verdict::Broken, error.to_string()))?;
    let broken = |error: ProgramError| (Verdict::Broken, refusal(&error));
    match hook.attach {
        Attach::TpBtf(names) => {
            let program: &mut BtfTracePoint = program.try_into().map_err(broken)?;
            for name in names {
                match program.load(name, btf) {
                    Err(ProgramError::Btf(_)) => {}
                    other => return other.map_err(broken),
                }
            }
            Err((
                Verdict::Unsupported,
                format!("this kernel has no BTF tracepoint {}", names.join(" or ")),
            ))
        }
        Attach::RawTp(_) | Attach::Run(_) => {
            let program: &mut RawTracePoint = program.try_into().map_err(broken)?;
            program.load().map_err(broken)
        }
        Attach::CpuClock => {
            let program: &mut PerfEvent = program.try_into().map_err(broken)?;
            program.load().map_err(broken)
        }
        Attach::UprobeMulti => Err((Verdict::Broken, "it is not attached to the whole host".to_owned())),
        Attach::Iter(target) => {
            let program: &mut Iter = program.try_into().map_err(broken)?;
            program.load(target, btf).map_err(|error| match error {
                ProgramError::Btf(_) => (
                    Verdict::Unsupported,
                    format!("this kernel has no BPF iterator {target}"),
                ),
                other => broken(other),
            })
        }
    }
}

impl Links {
    pub(super) fn attached(&self, probe: &str) -> bool {
        self.0.contains_key(probe)
    }

    pub(super) fn detach(&mut self, probe: &str) {
        self.0.remove(probe);
    }

    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        probe: &'static str,
        hook: &Hook,
        env: &Environment,
    ) -> Result<()> {
        let what = || format!("attach {}", hook.program);
        let links = self.0.entry(probe).or_default();
        if let Attach::Run(map) = hook.attach {
            links.push(Link::Run(
                Sampler::new(ebpf, hook.program, map).with_context(what)?,
            ));
            return Ok(());
        }
        let program = program(ebpf, hook.program)?;
        match hook.attach {
            Attach::TpBtf(_) => {
                let program: &mut BtfTracePoint = program.try_into()?;
                let id = program.attach().with_context(what)?;
                links.push(Link::Btf(program.take_link(id)?));
            }
            Attach::RawTp(name) => {
                let program: &mut RawTracePoint = program.try_into()?;
                let id = program.attach(name).with_context(what)?;
                links.push(Link::Raw(program.take_link(id)?));
            }
            Attach::CpuClock => {
                let program: &mut PerfEvent = program.try_into()?;
                let period = 1_000_000_000 / u64::from(env.cpu_hz.max(1));
                for cpu in &env.cpus {
                    let id = program
                        .attach(
                            PerfEventConfig::Software(SoftwareEvent::CpuClock),
                            PerfEventScope::AllProcessesOneCpu { cpu: *cpu },
                            SamplePolicy::Period(period),
                            false,
                        )
                        .with_context(what)?;
                    links.push(Link::Perf(program.take_link(id)?));
                }
            }
            Attach::Iter(_) | Attach::Run(_) | Attach::UprobeMulti => links.push(Link::Iter),
        }
        Ok(())
    }

    /// The program of a probe that the agent runs when it wants a sample.
    pub(super) fn sampler(&mut self, probe: &str) -> Option<&mut Sampler> {
        let links = self.0.get_mut(probe)?;
        links.iter_mut().find_map(|link| match link {
            Link::Run(sampler) => Some(sampler),
            _ => None,
        })
    }
}

/// Runs an iterator to its end and adds what it writes to `bytes`.
pub(super) fn visit(ebpf: &mut Ebpf, name: &str, bytes: &mut Vec<u8>) -> Result<()> {
    let program: &mut Iter = program(ebpf, name)?.try_into()?;
    let id = program.attach()?;
    let mut file = program.take_link(id)?.into_file()?;
    // As much as the kernel gathers for one read (eight pages, kernel/bpf/bpf_iter.c).
    let mut part = [0; 32 << 10];
    loop {
        match file
            .read(&mut part)
            .with_context(|| format!("read the iterator {name}"))?
        {
            0 => return Ok(()),
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
}
