//! nginx, saturated by wrk.

use super::{Done, Load, Running, SERVER, Site};
use crate::{
    bench::process::{Process, cpus, free_port, get, pinned, wait_for_port},
    command,
};
use anyhow::{Context as _, Result};
use std::{fs, path::Path};

pub(super) const LOAD: Load = Load {
    name: "nginx",
    unit: "request",
    what: "nginx with one worker, 50 connections of wrk that get a file of 1 KiB",
    needs: &["nginx", "wrk"],
    target: SERVER,
    start,
};

/// One worker, nothing outside `dir`, and a page that counts requests.
fn configuration(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "user root; worker_processes 1; daemon off; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off; keepalive_requests 1000000000; sendfile on; tcp_nopush on;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    server {{
        listen 127.0.0.1:{port}; root {dir};
        location = /stub_status {{ stub_status; }}
    }}
}}
"
    )
}

fn start(site: &Site<'_>) -> Result<Running> {
    let (server_cpu, client_cpu) = cpus();
    let port = free_port()?;
    let dir = site.dir.join("nginx");
    fs::create_dir(&dir)?;
    fs::write(dir.join("page"), [b'x'; 1024])?;
    fs::write(dir.join("nginx.conf"), configuration(&dir, port))?;
    let program = command::find("nginx").context("no nginx")?;
    let mut server = pinned(&program, server_cpu, None);
    server.args(["-e", "stderr", "-c"]).arg(dir.join("nginx.conf"));
    let mut server = Process::start(&mut server, &site.dir.join("nginx.log"))?;
    wait_for_port(&mut server, port)?;

    let program = command::find("wrk").context("no wrk")?;
    let mut client = pinned(&program, client_cpu, None);
    client.args(["-t", "1", "-c", "50", "-d", "1000000"]);
    client.arg(format!("http://127.0.0.1:{port}/page"));
    let client = Process::start(&mut client, &site.dir.join("wrk.log"))?;

    Ok(Running {
        measured: server.family()?,
        processes: vec![client, server],
        count: Box::new(move || {
            Ok(Done {
                operations: requests(&get(port, "/stub_status")?)
                    .context("nginx does not tell its requests")?,
                ..Done::default()
            })
        }),
    })
}

/// The third number below `server accepts handled requests`.
fn requests(page: &str) -> Option<u64> {
    let mut lines = page
        .lines()
        .skip_while(|line| !line.trim_end().ends_with("requests"));
    lines.nth(1)?.split_ascii_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_requests_of_stub_status() {
        let page = "Active connections: 2 \nserver accepts handled requests\n 5 5 9 \nReading: 0 Writing: 1 Waiting: 0 \n";
        assert_eq!(
            super::requests(&page.replace("requests\n", "requests \n")),
            Some(9)
        );
        assert_eq!(super::requests(page), Some(9));
        assert_eq!(super::requests("nothing"), None);
    }
}
