//! Which argument of an interpreter is the program. Code on the command line is never shown.

use super::{base, launcher};

/// How an interpreter reads its arguments.
pub(super) struct Interpreter {
    names: &'static [&'static str],
    /// Letters after which code follows.
    code: &'static str,
    /// Letters after which a value follows, in the same argument or in the next one.
    valued: &'static str,
    /// Letters whose value is the rest of the same argument.
    attached: &'static str,
    /// Letters after which the program follows.
    program: &'static str,
    /// Whole options after which a value follows.
    long_valued: &'static [&'static str],
    /// Whole options after which code follows.
    long_code: &'static [&'static str],
    /// Whole options after which the program follows.
    long_program: &'static [&'static str],
    /// Words before the program.
    verbs: &'static [&'static str],
}

const NONE: Interpreter = Interpreter {
    names: &[],
    code: "",
    valued: "",
    attached: "",
    program: "",
    long_valued: &[],
    long_code: &[],
    long_program: &[],
    verbs: &[],
};

const TABLE: &[Interpreter] = &[
    Interpreter {
        names: &["python", "pypy"],
        code: "c",
        valued: "WXQ",
        program: "m",
        long_valued: &["--check-hash-based-pycs"],
        ..NONE
    },
    Interpreter {
        names: &["java"],
        long_valued: &[
            "-cp",
            "-classpath",
            "--class-path",
            "-p",
            "--module-path",
            "--upgrade-module-path",
            "--add-modules",
            "--add-opens",
            "--add-exports",
            "--add-reads",
            "--enable-native-access",
        ],
        long_program: &["-jar", "-m", "--module"],
        ..NONE
    },
    Interpreter {
        names: &["node", "nodejs"],
        code: "ep",
        valued: "rC",
        long_valued: &[
            "--require",
            "--import",
            "--loader",
            "--experimental-loader",
            "--conditions",
            "--title",
        ],
        long_code: &["--eval", "--print"],
        ..NONE
    },
    Interpreter {
        names: &["bun", "deno"],
        code: "ep",
        valued: "rcL",
        long_valued: &["--config", "--import-map", "--preload", "--cwd"],
        long_code: &["--eval", "--print", "eval"],
        verbs: &["run", "serve", "x", "test"],
        ..NONE
    },
    Interpreter {
        names: &["ruby", "jruby"],
        code: "e",
        valued: "IrCE",
        attached: "xTWKF0",
        ..NONE
    },
    Interpreter {
        names: &["perl"],
        code: "eE",
        valued: "I",
        attached: "MmixFCDd",
        ..NONE
    },
    Interpreter {
        names: &["bash", "sh", "dash", "zsh", "ksh", "ash"],
        code: "c",
        valued: "oO",
        long_valued: &["--rcfile", "--init-file"],
        ..NONE
    },
    Interpreter {
        names: &["php"],
        code: "rBRE",
        valued: "dcStz",
        program: "fF",
        long_valued: &["--define", "--php-ini", "--server", "--docroot"],
        long_code: &["--run", "--process-begin", "--process-code", "--process-end"],
        long_program: &["--file", "--process-file"],
        ..NONE
    },
    Interpreter {
        names: &["dotnet"],
        long_valued: &[
            "--additionalprobingpath",
            "--additional-deps",
            "--runtimeconfig",
            "--depsfile",
            "--fx-version",
            "--roll-forward",
        ],
        verbs: &["exec"],
        ..NONE
    },
    Interpreter {
        names: &["lua", "luajit", "Rscript", "mono", "mono-sgen"],
        code: "e",
        valued: "l",
        ..NONE
    },
];

/// The interpreter of a name without its version.
pub(super) fn find(name: &str) -> Option<&'static Interpreter> {
    TABLE.iter().find(|row| row.is(name))
}

/// What one argument of the interpreter means.
enum Argument<'a> {
    Option,
    Code,
    /// The next one is its value.
    Valued,
    /// The next one is the program.
    Program,
    Is(&'a str),
}

impl Interpreter {
    /// Whether this is its name.
    pub(super) fn is(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    /// Names the program that it runs; `None` for code on the command line, standard input or a prompt.
    pub(super) fn program(&self, arguments: &[&str]) -> Option<String> {
        let mut rest = arguments.iter().copied();
        while let Some(argument) = rest.next() {
            let program = match self.meaning(argument) {
                Argument::Option => continue,
                Argument::Code => return None,
                Argument::Valued => {
                    rest.next();
                    continue;
                }
                Argument::Program => rest.next()?,
                Argument::Is(program) => program,
            };
            let others: Vec<&str> = rest.collect();
            return Some(match self.names {
                ["java"] if argument != "-jar" => class(program),
                // A module, not a file.
                ["python", ..] if argument != program => launcher::launched(program, &others),
                _ => launcher::launched(&file(program), &others),
            });
        }
        None
    }

    fn meaning<'a>(&self, argument: &'a str) -> Argument<'a> {
        if self.long_program.contains(&argument) {
            return Argument::Program;
        }
        if self.long_code.contains(&argument) {
            return Argument::Code;
        }
        if self.long_valued.contains(&argument) {
            return Argument::Valued;
        }
        let Some(letters) = argument.strip_prefix('-') else {
            // Java reads more arguments from @files.
            let other =
                self.verbs.contains(&argument) || argument.starts_with('@') || argument.starts_with('+');
            return if other {
                Argument::Option
            } else {
                Argument::Is(argument)
            };
        };
        if letters.starts_with('-') || self.names.contains(&"java") {
            let code = self.long_code.iter().any(|option| {
                argument
                    .strip_prefix(option)
                    .is_some_and(|rest| rest.starts_with('='))
            });
            return if code { Argument::Code } else { Argument::Option };
        }
        for (at, letter) in letters.char_indices() {
            let rest = &letters[at + letter.len_utf8()..];
            if self.code.contains(letter) {
                return Argument::Code;
            }
            if self.program.contains(letter) {
                return if rest.is_empty() {
                    Argument::Program
                } else {
                    Argument::Is(rest)
                };
            }
            if self.valued.contains(letter) {
                return if rest.is_empty() {
                    Argument::Valued
                } else {
                    Argument::Option
                };
            }
            if self.attached.contains(letter) {
                return Argument::Option;
            }
        }
        Argument::Option
    }
}

/// Files that every project calls the same; the folder tells more.
const ENTRIES: &[&str] = &[
    "__main__.py",
    "app.js",
    "app.py",
    "app.rb",
    "index.js",
    "index.mjs",
    "index.php",
    "index.ts",
    "main.js",
    "main.mjs",
    "main.py",
    "main.rb",
    "main.ts",
    "server.js",
    "server.mjs",
    "server.ts",
    "start.sh",
    "run.sh",
    "entrypoint.sh",
];
/// Folders that every project has.
const FOLDERS: &[&str] = &[
    "",
    ".",
    "..",
    "app",
    "bin",
    "build",
    "code",
    "current",
    "dist",
    "home",
    "lib",
    "local",
    "opt",
    "out",
    "root",
    "sbin",
    "server",
    "share",
    "srv",
    "src",
    "tmp",
    "usr",
    "usr_src",
    "var",
    "workspace",
    "www",
];

/// A file as a person would say it: `cart` for `/srv/cart/dist/index.js`.
fn file(path: &str) -> String {
    let name = base(path);
    if ENTRIES.contains(&name) {
        let folder = path.rsplit('/').skip(1).find(|folder| !FOLDERS.contains(folder));
        return folder.unwrap_or(name).to_owned();
    }
    name.to_owned()
}

/// Products that are better known than their class.
const CLASSES: &[(&str, &str)] = &[
    ("kafka.Kafka", "kafka"),
    ("org.apache.catalina.", "tomcat"),
    ("org.apache.cassandra.", "cassandra"),
    ("org.apache.zookeeper.", "zookeeper"),
    ("org.elasticsearch.", "elasticsearch"),
    ("org.opensearch.", "opensearch"),
];
/// Classes that say nothing without their package.
const ENTRY_CLASSES: &[&str] = &["App", "Application", "Bootstrap", "Launcher", "Main", "Server"];

fn class(name: &str) -> String {
    // `module/package.Class`.
    let name = base(name);
    if let Some((_, product)) = CLASSES.iter().find(|(prefix, _)| name.starts_with(prefix)) {
        return (*product).to_owned();
    }
    let mut parts = name.rsplit('.');
    let class = parts.next().unwrap_or(name);
    match parts.next() {
        Some(package) if ENTRY_CLASSES.contains(&class) => format!("{package}.{class}"),
        _ => class.to_owned(),
    }
}
