//! The program as a person would say it: `gunicorn shop.wsgi`, `orders.jar`; not `python3`, `java`.

/// Longest name.
const MAX: usize = 64;

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `python3.11` → `python`.
fn family(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-')
}

/// Arguments of an interpreter: which options take a value, and which name the program.
struct Interpreter {
    names: &'static [&'static str],
    /// Options followed by a value that is not the program.
    valued: &'static [&'static str],
    /// Options followed by the program: a module, an archive.
    program: &'static [&'static str],
}

const INTERPRETERS: &[Interpreter] = &[
    Interpreter {
        names: &["python", "pypy"],
        valued: &["-W", "-X", "-Q"],
        program: &["-m"],
    },
    Interpreter {
        names: &["java"],
        valued: &[
            "-cp",
            "-classpath",
            "--class-path",
            "-p",
            "--module-path",
            "--add-modules",
            "--add-opens",
            "--add-exports",
        ],
        program: &["-jar", "-m", "--module"],
    },
    Interpreter {
        names: &["node", "nodejs", "bun"],
        valued: &["-r", "--require", "--import", "--loader"],
        program: &[],
    },
    Interpreter {
        names: &["ruby", "perl"],
        valued: &["-I", "-r"],
        program: &[],
    },
    Interpreter {
        names: &["bash", "sh", "dash", "zsh"],
        valued: &["-o"],
        program: &[],
    },
    Interpreter {
        names: &["dotnet", "deno", "php", "Rscript"],
        valued: &[],
        program: &[],
    },
];

/// Launchers whose first argument of their own is the application.
const LAUNCHERS: &[&str] = &[
    "gunicorn",
    "uvicorn",
    "celery",
    "hypercorn",
    "waitress-serve",
    "manage.py",
    "uwsgi",
];

/// Names a program by its executable, its arguments and the kernel's name of its main thread.
#[must_use]
pub fn program_name(exe: &str, cmdline: &[String], comm: &str) -> String {
    let exe_name = base(exe);
    let interpreter = INTERPRETERS
        .iter()
        .find(|row| row.names.contains(&family(exe_name)));
    let name = match interpreter {
        Some(row) => interpreted(row, cmdline).unwrap_or_else(|| family(exe_name).to_owned()),
        // A title that a program sets itself (`nginx: worker process`) says less than its executable.
        None if !exe_name.is_empty() => exe_name.to_owned(),
        None => comm.to_owned(),
    };
    clean(&name)
}

fn interpreted(row: &Interpreter, cmdline: &[String]) -> Option<String> {
    let mut arguments = cmdline.iter().skip(1).map(String::as_str);
    while let Some(argument) = arguments.next() {
        if row.program.contains(&argument) {
            let program = arguments.next()?;
            let name = if argument == "-jar" {
                base(program)
            } else {
                program.rsplit('/').next()?
            };
            return Some(launched(name, arguments));
        }
        if row.valued.contains(&argument) {
            arguments.next();
        } else if argument == "-c" || argument == "-e" {
            // Code on the command line is never shown.
            return None;
        } else if !argument.starts_with('-') {
            if row.names.contains(&"java") {
                return Some(argument.rsplit(['.', '/']).next()?.to_owned());
            }
            let mut name = base(argument);
            if matches!(
                name,
                "index.js" | "main.js" | "server.js" | "app.js" | "__main__.py"
            ) && let Some(folder) = argument.rsplit('/').nth(1)
                && !matches!(
                    folder,
                    "" | "." | "src" | "dist" | "build" | "bin" | "lib" | "app"
                )
            {
                name = folder;
            }
            return Some(launched(name, arguments));
        }
    }
    None
}

/// Adds the application that a launcher runs: `gunicorn` + `shop.wsgi`.
fn launched<'a>(name: &str, arguments: impl Iterator<Item = &'a str>) -> String {
    if !LAUNCHERS.contains(&name) {
        return name.to_owned();
    }
    let mut skip = false;
    for argument in arguments {
        if skip {
            skip = false;
        } else if matches!(argument, "-A" | "--app") {
            continue;
        } else if argument.starts_with('-') {
            skip = !argument.contains('=') && !argument.starts_with("--no-");
        } else if argument.contains('=') {
            continue;
        } else {
            let application = argument.split(':').next().unwrap_or(argument);
            return format!("{name} {}", base(application));
        }
    }
    name.to_owned()
}

fn clean(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).take(MAX).collect();
    let name = name.trim();
    if name.is_empty() {
        "(unknown)".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_a_person_would_say_them() {
        for (exe, cmdline, name) in [
            (
                "/usr/bin/python3.11",
                "python3 /usr/bin/gunicorn -w 4 shop.wsgi:app",
                "gunicorn shop.wsgi",
            ),
            ("/usr/bin/python3.11", "python3 -m http.server 80", "http.server"),
            (
                "/usr/bin/python3.11",
                "python3 -u /srv/worker.py --token x",
                "worker.py",
            ),
            ("/usr/bin/python3.11", "python3 -c print(1)", "python"),
            (
                "/usr/bin/python3.11",
                "python3 /usr/bin/celery -A proj worker",
                "celery proj",
            ),
            (
                "/usr/lib/jvm/bin/java",
                "java -Xmx1g -cp a.jar:b.jar com.shop.Orders",
                "Orders",
            ),
            ("/usr/lib/jvm/bin/java", "java -jar /srv/orders.jar", "orders.jar"),
            (
                "/usr/bin/node",
                "node --max-old-space-size=512 /srv/cart/index.js",
                "cart",
            ),
            ("/usr/bin/node", "node worker.js", "worker.js"),
            ("/usr/bin/bash", "bash /opt/run.sh", "run.sh"),
            ("/usr/bin/bash", "-bash", "bash"),
            ("/usr/bin/dash", "sh -c secret", "dash"),
            ("/usr/sbin/nginx", "nginx: worker process", "nginx"),
            (
                "/usr/lib/postgresql/15/bin/postgres",
                "postgres: walwriter",
                "postgres",
            ),
            ("/usr/bin/redis-server", "redis-server *:6379", "redis-server"),
        ] {
            let cmdline: Vec<String> = cmdline.split(' ').map(str::to_owned).collect();
            assert_eq!(program_name(exe, &cmdline, "x"), name, "{cmdline:?}");
        }
        assert_eq!(program_name("", &[], "a\nb"), "ab");
        assert_eq!(program_name("", &[], ""), "(unknown)");
    }
}
