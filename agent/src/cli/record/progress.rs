//! What is going on, for a person at a terminal.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

/// Says so until it is dropped, once a second where somebody looks.
pub(super) struct Progress {
    line: Option<JoinHandle<()>>,
}

impl Progress {
    /// `command`: the terminal is a command's own.
    pub(super) fn start(title: &str, duration: Option<Duration>, command: bool) -> Self {
        if command {
            return Self { line: None };
        }
        let until = match duration {
            Some(duration) => format!("for {}", humantime::format_duration(duration)),
            None => "until it ends".to_owned(),
        };
        if !stderr().is_terminal() {
            eprintln!("tieback: recording {title} {until}, or SIGINT");
            return Self { line: None };
        }
        let began = Instant::now();
        let text = format!("tieback: recording {title} {until}, or Ctrl-C");
        let line = tokio::spawn(async move {
            loop {
                // Written over the last one.
                eprint!("\r{text}: {} s ", began.elapsed().as_secs());
                let _ = stderr().flush();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        Self { line: Some(line) }
    }

    /// Recording has ended.
    pub(super) fn finishing(self) {
        if let Some(line) = &self.line {
            line.abort();
            eprintln!();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.abort();
        }
    }
}
