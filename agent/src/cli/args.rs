//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::aggregate::StackKind;
use crate::config::{AllocMode, Bytes, Flags, Percent, Settings, Span, SyscallMode};

/// Ties what a service does at run time back to the code that does it.
#[derive(Debug, Parser)]
#[command(name = "tieback", version, propagate_version = true, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Profile this host and serve metrics, profiles and pages
    Agent(Box<AgentArgs>),
    /// Record the same profile of one command, process or service
    #[command(after_help = RECORD_HELP)]
    Record(Box<RecordArgs>),
    /// Say what works on this host, probe by probe, and how to mend what does not
    Doctor(DoctorArgs),
    /// Measure what a user stack costs on this host
    #[command(hide = true)]
    StackCost(StackCostArgs),
}

/// Arguments of `tieback stack-cost`.
#[derive(Debug, Args)]
pub struct StackCostArgs {
    /// The program that has the stacks, made from `tests/programs/depth.c`
    pub program: PathBuf,
    /// Depths in frames
    #[arg(required = true)]
    pub depths: Vec<u32>,
}

/// Arguments of `tieback agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Settings.
    #[command(flatten)]
    pub flags: Flags,
}

const RECORD_CPU_LIMIT: Percent = Percent(10.0);

const RECORD_HELP: &str = "\
A command is held back until all probes are on, runs with the rights of this one, and is recorded with all that it starts until it
ends; the exit status is its own (127: there is no such command; 126: it cannot be run; 128 and more: the signal that ended it).
SIGINT and SIGTERM go to it; after the second one, recording ends without it. If the duration is over first, the command goes on, and
so does this one until it ends. A process (-p) is recorded with what it starts from then on.
Waits count from their beginning on; their stack is known when they end.

--alloc=full counts from some milliseconds after a program's start on, when its allocator was found in memory.";

/// Arguments of `tieback record`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["pid", "service", "command"])))]
pub struct RecordArgs {
    /// File to write: all signals where its name ends in `.pb.gz` or `.pprof`; one where it ends in `.folded` or `.svg`
    #[arg(short, long, value_name = "FILE", default_value = "tieback.pb.gz")]
    pub output: PathBuf,
    /// How long to record: seconds, or a time like 5m; without it, until the process or command ends, or SIGINT
    #[arg(short, long, value_name = "SECONDS", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Process that runs already
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub pid: Option<u32>,
    /// Service, `NAME` or `NAMESPACE/NAME`, as `tieback agent` names it
    #[arg(short, long)]
    pub service: Option<String>,
    /// Watch allocations, too: `full` all the time, `duty` in short windows at a bounded cost
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "full")]
    pub alloc: Option<AllocMode>,
    /// Signal of a file that holds one: wait, cpu, syscall, memory, conn, fd, alloc, alloc_objects, alloc_live
    #[arg(long, value_name = "SIGNAL", value_parser = signal, default_value = "wait")]
    pub signal: StackKind,
    /// Allocated bytes that one sample stands for, in the mean [default: 512KiB]
    #[arg(long, env = "TIEBACK_ALLOC_PERIOD", value_name = "SIZE")]
    pub alloc_period: Option<Bytes>,
    /// CPU stack samples per second and CPU [default: 19]
    #[arg(long, env = "TIEBACK_SAMPLE_CPU_HZ", value_name = "HZ")]
    pub sample_cpu_hz: Option<u32>,
    /// How system calls are counted: exact, auto, off [default: auto]
    #[arg(long, env = "TIEBACK_SYSCALL_MODE", value_name = "MODE")]
    pub syscall_mode: Option<SyscallMode>,
    /// Ceiling of the cost of hooks and agent together, as a share of all CPUs of the host [default: 10%, with --config its value]
    #[arg(long, env = "TIEBACK_CPU_LIMIT", value_name = "PERCENT")]
    pub cpu_limit: Option<Percent>,
    /// Configuration file (TOML), for all other settings
    #[arg(long, env = "TIEBACK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Command to run, after `--`
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

impl RecordArgs {
    /// The settings among them; windows are short, so that a short life is seen in more than one, and kept to the end.
    pub(super) fn flags(&self) -> Flags {
        let seconds = |seconds| Some(Span(Duration::from_secs(seconds)));
        Flags {
            config: self.config.clone(),
            settings: Settings {
                alloc_period: self.alloc_period,
                sample_cpu_hz: self.sample_cpu_hz,
                syscall_mode: self.syscall_mode,
                // Somebody waits for it and wants detail, names of functions included.
                cpu_limit: self
                    .cpu_limit
                    .or(self.config.is_none().then_some(RECORD_CPU_LIMIT)),
                interval: seconds(1),
                retention: seconds(24 * 3600),
                ..Settings::default()
            },
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u64>().ok().map(Duration::from_secs);
    seconds
        .or_else(|| humantime::parse_duration(text).ok())
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "neither seconds nor a time like 5m".to_owned())
}

fn signal(text: &str) -> Result<StackKind, String> {
    let known = StackKind::ALL.iter().copied();
    known.clone().find(|kind| kind.as_str() == text).ok_or_else(|| {
        format!(
            "not one of {}",
            known.map(StackKind::as_str).collect::<Vec<_>>().join(", ")
        )
    })
}

/// Arguments of `tieback doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Root of the host's file system, for an agent in a container
    #[arg(long, env = "TIEBACK_HOST_ROOT", value_name = "PATH", default_value = "/")]
    pub host_root: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_agent_takes_settings() {
        let cli = Cli::try_parse_from(["tieback", "agent", "--syscall-mode", "exact", "--top", "5"])
            .expect("valid");
        let Command::Agent(args) = cli.command else {
            panic!("not the agent")
        };
        assert_eq!(args.flags.settings.top, Some(5));
        assert!(Cli::try_parse_from(["tieback", "agent", "--cpu-limit", "1"]).is_err());
        assert!(Cli::try_parse_from(["tieback"]).is_err());
    }

    #[test]
    fn one_thing_is_recorded() {
        let parse = |args: &[&str]| {
            let all = ["tieback", "record"].iter().chain(args);
            match Cli::try_parse_from(all)?.command {
                Command::Record(args) => Ok::<_, clap::Error>(*args),
                other => panic!("not a recording: {other:?}"),
            }
        };
        let args = parse(&["--alloc", "-d", "5", "--", "ls", "-l", "--alloc=duty"]).expect("valid");
        assert_eq!(
            (args.alloc, args.duration),
            (Some(AllocMode::Full), Some(Duration::from_secs(5)))
        );
        assert_eq!(args.command, ["ls", "-l", "--alloc=duty"]);
        assert_eq!(args.signal, StackKind::Wait);
        let args = parse(&[
            "-p",
            "7",
            "--alloc=duty",
            "-o",
            "a.svg",
            "--signal",
            "alloc",
            "-d",
            "2m",
        ])
        .expect("valid");
        assert_eq!((args.pid, args.alloc), (Some(7), Some(AllocMode::Duty)));
        assert_eq!(
            (args.signal, args.duration),
            (StackKind::Alloc, Some(Duration::from_secs(120)))
        );
        assert_eq!(
            parse(&["-s", "web/shop"]).expect("valid").service.as_deref(),
            Some("web/shop")
        );
        for wrong in [
            &[][..],
            &["ls"],
            &["-p", "0"],
            &["-p", "1", "--", "ls"],
            &["-p", "1", "-s", "shop"],
            &["-p", "1", "-d", "0"],
            &["-p", "1", "-d", "soon"],
            &["-p", "1", "--alloc=some"],
            &["-p", "1", "--signal", "waits"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_help_of_a_recording_lists_all_signals() {
        let mut command = Cli::command();
        let record = command.find_subcommand_mut("record").expect("there");
        let signal = record
            .get_arguments()
            .find(|argument| argument.get_id() == "signal");
        let help = signal
            .and_then(clap::Arg::get_help)
            .expect("a help text")
            .to_string();
        let listed = help.split_once(':').expect("a list").1;
        let listed: Vec<&str> = listed.split(',').map(str::trim).collect();
        for kind in StackKind::ALL {
            assert!(listed.contains(&kind.as_str()), "{}: {listed:?}", kind.as_str());
        }
    }

    #[test]
    fn help_tells_default_and_variable_of_every_setting() {
        let mut command = Cli::command();
        let agent = command.find_subcommand_mut("agent").expect("there");
        let help = agent.render_long_help().to_string();
        for argument in agent
            .get_arguments()
            .filter(|a| !["help", "version", "config"].contains(&a.get_id().as_str()))
        {
            let name = argument.get_id().as_str();
            let about = argument.get_help().expect("a help text").to_string();
            assert!(about.contains("[default: "), "{name}: {about}");
            assert_eq!(
                argument.get_env().expect("a variable").to_str(),
                Some(format!("TIEBACK_{}", name.to_uppercase()).as_str())
            );
        }
        assert!(
            help.contains("--memory-limit <SIZE>") && help.contains("[default: 256MiB]"),
            "{help}"
        );
    }
}
