//! Every single-valued setting: a flag, an environment variable and a key of the file each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::values::{AbsolutePath, Bytes, Percent, Span, SyscallMode, Urls};
use super::watched::Watched;

/// Declares the settings once: flag and variable (by clap), key of the file, default.
macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:literal, $env:literal, $value:literal;)+) => {
        /// Settings as one source gives them; what it leaves out is `None`.
        #[derive(Clone, Debug, Default, PartialEq, clap::Args)]
        pub struct Settings {
            $(
                $(#[doc = $doc])+
                #[arg(
                    long,
                    env = $env,
                    value_name = $value,
                    help = concat!($($doc,)+ " [default: ", $default, "]").trim_start()
                )]
                pub $name: Option<$type>,
            )+
        }

        /// Settings with nothing left out; not validated.
        #[derive(Clone, Debug)]
        pub(super) struct Complete {
            $(pub(super) $name: $type,)+
        }

        impl Settings {
            /// Keys of the file.
            pub(super) const KEYS: &'static [&'static str] = &[$(stringify!($name),)+];

            /// Takes a value of the file; `None` when there is no such key.
            pub(super) fn set(&mut self, key: &str, text: &str) -> Option<Result<(), String>> {
                match key {
                    $(stringify!($name) => Some(parse::<$type>(text).map(|value| self.$name = Some(value))),)+
                    _ => None,
                }
            }

            /// Whether this source says anything about a key.
            pub(super) fn has(&self, key: &str) -> bool {
                match key {
                    $(stringify!($name) => self.$name.is_some(),)+
                    _ => false,
                }
            }

            /// This source first, then `fallback`, then the defaults.
            pub(super) fn complete(self, fallback: Self) -> Result<Complete, String> {
                Ok(Complete {
                    $($name: match self.$name.or(fallback.$name) {
                        Some(value) => value,
                        None => parse::<$type>($default)?,
                    },)+
                })
            }
        }
    };
}

fn parse<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

settings! {
    /// Address to serve HTTP on. There is no authentication: keep it on loopback or inside a trusted network.
    listen: SocketAddr = "127.0.0.1:9909", "TIEBACK_LISTEN", "ADDR";
    /// Length of a window: how often counters are read and published.
    interval: Span = "10s", "TIEBACK_INTERVAL", "TIME";
    /// How system calls are counted: `exact` counts every call, `auto` counts in windows when every call would cost
    /// too much, `off` not at all.
    syscall_mode: SyscallMode = "auto", "TIEBACK_SYSCALL_MODE", "MODE";
    /// Ceiling of the agent's memory, BPF maps included.
    memory_limit: Bytes = "256MiB", "TIEBACK_MEMORY_LIMIT", "SIZE";
    /// Most kernel memory for tables by which stacks without frame pointers are walked; it is taken as programs are sampled.
    unwind_memory: Bytes = "32MiB", "TIEBACK_UNWIND_MEMORY", "SIZE";
    /// Ceiling of the cost of hooks and agent together, as a share of all CPUs of the host.
    cpu_limit: Percent = "1%", "TIEBACK_CPU_LIMIT", "PERCENT";
    /// While this file exists, everything is detached.
    kill_switch: AbsolutePath = "/run/tieback/disable", "TIEBACK_KILL_SWITCH", "PATH";
    /// CPU stack samples per second and CPU.
    sample_cpu_hz: u32 = "19", "TIEBACK_SAMPLE_CPU_HZ", "HZ";
    /// Processes younger than this are not looked up one by one; they count for the service of their parent.
    min_age: Span = "1s", "TIEBACK_MIN_AGE", "TIME";
    /// Code series per service and signal; the rest is `function="(other)"`.
    top: usize = "20", "TIEBACK_TOP", "N";
    /// Series of all services together; code series go first when there are more.
    series_limit: usize = "50000", "TIEBACK_SERIES_LIMIT", "N";
    /// Services; those past the limit count as `(other)`.
    services_limit: usize = "1000", "TIEBACK_SERVICES_LIMIT", "N";
    /// Peers of connections per service; those past the limit count as `(other)`.
    peers_limit: usize = "50", "TIEBACK_PEERS_LIMIT", "N";
    /// Services with no process and no news for this long are forgotten.
    service_idle: Span = "1h", "TIEBACK_SERVICE_IDLE", "TIME";
    /// How far back profiles reach.
    retention: Span = "15m", "TIEBACK_RETENTION", "TIME";
    /// Services whose allocations are watched, with commas between them: `SERVICE` or `SERVICE=duty` in short windows, at a
    /// bounded cost; `SERVICE=full` all the time, which also shows what lives and what leaks; `off` watches nobody.
    alloc: Watched = "off", "TIEBACK_ALLOC", "SERVICES";
    /// Allocated bytes that one sample stands for, in the mean.
    alloc_period: Bytes = "512KiB", "TIEBACK_ALLOC_PERIOD", "SIZE";
    /// Most that watching allocations in windows may cost a program, as a share of its CPU time.
    alloc_limit: Percent = "1%", "TIEBACK_ALLOC_LIMIT", "PERCENT";
    /// Allocations are watched all the time only as long as that slows a program less than so many times, as the CPU clock's samples
    /// show, which is a lower estimate. `tieback record` has no such limit.
    alloc_slowdown: usize = "20", "TIEBACK_ALLOC_SLOWDOWN", "TIMES";
    /// debuginfod servers that are asked for debug files by build id, several with spaces between them; `off` asks nobody.
    debuginfod_urls: Urls = "off", "TIEBACK_DEBUGINFOD_URLS", "URLS";
    /// Where fetched debug files are kept, at most 512 MiB.
    debuginfod_cache: AbsolutePath = "/var/cache/tieback", "TIEBACK_DEBUGINFOD_CACHE", "PATH";
    /// Root of the host's file system, for an agent in a container.
    host_root: AbsolutePath = "/", "TIEBACK_HOST_ROOT", "PATH";
}

/// Everything that the command line and the environment say.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub struct Flags {
    /// Configuration file (TOML). Flags and variables override it.
    #[arg(long, env = "TIEBACK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: Settings,
}
