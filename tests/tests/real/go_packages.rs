//! A program in Go with a package of somebody else, built without a network.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::owned::source;
use super::selftests::answered;

const VERSION: &str = "example.com/ledger@v1.2.3";

/// `orders.go` with its driver of a database: from the cache of modules, with paths as `-trimpath` leaves them, and vendored. Their names
/// and files.
pub(super) fn build(folder: &Path) -> Result<[(&'static str, PathBuf); 3]> {
    let [main, driver] = ["main", "ledger"].map(|module| format!("module example.com/{module}\n\ngo 1.18\n"));
    let (shop, cache) = (folder.join("shop"), folder.join("cache"));
    let (package, proxy) = (cache.join(VERSION), folder.join("proxy/example.com/ledger/@v"));
    for made in [&shop, &package, &proxy] {
        std::fs::create_dir_all(made)?;
    }
    std::fs::copy(source("orders.go"), shop.join("orders.go"))?;
    std::fs::write(
        shop.join("go.mod"),
        format!("{main}\nrequire example.com/ledger v1.2.3\n"),
    )?;
    // A proxy of modules that is a folder: no network.
    std::fs::write(proxy.join("v1.2.3.mod"), &driver)?;
    std::fs::write(proxy.join("v1.2.3.info"), r#"{"Version":"v1.2.3"}"#)?;
    std::fs::copy(source("ledger.go"), package.join("ledger.go"))?;
    std::fs::write(package.join("go.mod"), &driver)?;
    let zip = "import sys, zipfile\nto = zipfile.ZipFile(sys.argv[1], 'w')\nfor name in sys.argv[2:]: to.write(name)\nto.close()";
    let mut python = Command::new("python3");
    python.args(["-c", zip]).arg(proxy.join("v1.2.3.zip"));
    python.args(["go.mod", "ledger.go"].map(|file| format!("{VERSION}/{file}")));
    answered(python.current_dir(&cache), "")?;
    std::fs::remove_dir_all(&cache)?;
    let run = |words: &[&str]| {
        answered(
            Command::new("go")
                .args(words)
                .current_dir(&shop)
                .env("GOPROXY", format!("file://{}", folder.join("proxy").display()))
                .envs([
                    ("GOSUMDB", "off"),
                    ("GO111MODULE", "on"),
                    ("GOFLAGS", "-modcacherw"),
                ])
                .env("GOMODCACHE", &cache)
                .env("GOCACHE", folder.join("builds")),
            "",
        )
    };
    // `-trimpath` itself would compile Go's library anew.
    let trimmed = format!("-gcflags=example.com/ledger=-trimpath={}", cache.display());
    run(&["build", "-mod=mod", "-o", "cached"])?;
    run(&["build", "-mod=mod", "-o", "trimmed", &trimmed])?;
    run(&["mod", "vendor"])?;
    run(&["build", "-mod=vendor", "-o", "vendored"])?;
    Ok(["cached", "trimmed", "vendored"].map(|name| (name, shop.join(name))))
}
