//! Programs that run applications: their name alone is no service's.

use super::base;

/// Servers whose application is `module:object`.
const SERVERS: &[&str] = &[
    "daphne",
    "granian",
    "gunicorn",
    "hypercorn",
    "uvicorn",
    "waitress-serve",
];
/// Launchers whose first word of their own is the application or the task.
const LAUNCHERS: &[&str] = &["celery", "flask", "manage.py", "rails", "uwsgi"];
/// The same, of a task that may contain colons.
const TASKS: &[&str] = &["artisan", "console", "rake"];

/// Adds what a launcher runs: `gunicorn` + `shop.wsgi`.
pub(super) fn launched(name: &str, arguments: &[&str]) -> String {
    if name == "bundle"
        && let ["exec", program, rest @ ..] = arguments
    {
        return launched(base(program), rest);
    }
    if SERVERS.contains(&name)
        && let Some(application) = arguments.iter().find_map(|argument| application(argument))
    {
        return format!("{name} {application}");
    }
    let task = TASKS.contains(&name);
    if !task && !SERVERS.contains(&name) && !LAUNCHERS.contains(&name) {
        return name.to_owned();
    }
    let mut skip = false;
    for argument in arguments {
        if skip {
            skip = false;
        } else if matches!(*argument, "-A" | "--app") {
        } else if argument.starts_with('-') {
            // Whether a value follows is not known of every option; most do.
            skip = !argument.contains('=') && !argument.starts_with("--no-");
        } else if argument.contains('=') {
        } else if task {
            return format!("{name} {argument}");
        } else {
            let application = argument.split(':').next().unwrap_or(argument);
            return format!("{name} {}", base(application));
        }
    }
    name.to_owned()
}

/// `shop.wsgi` of `shop.wsgi:app`; an address (`localhost:80`, `unix:/run/x`) is none.
fn application(argument: &str) -> Option<&str> {
    let (module, object) = argument.split_once(':')?;
    let identifier = |text: &str| {
        text.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.')
    };
    (identifier(module) && identifier(object.trim_end_matches("()"))).then_some(module)
}

/// From a title that a program gave itself: `gunicorn: master [shop.wsgi]`, `puma 6.4 (tcp://...) [shop]`, `npm start`.
pub(super) fn titled(words: &[&str]) -> String {
    let first = words.first().copied().unwrap_or_default();
    // `[celeryd: celery@host:MainProcess] -active- (worker -A shop)`
    if first.starts_with("[celeryd:") {
        return "celery".to_owned();
    }
    let name = base(first.trim_end_matches(':'));
    let application = words
        .last()
        .and_then(|word| word.strip_prefix('[')?.strip_suffix(']'))
        .filter(|_| matches!(name, "gunicorn" | "puma"));
    match application {
        Some(application) if !application.is_empty() => {
            format!("{name} {}", application.split(':').next().unwrap_or(application))
        }
        _ => name.to_owned(),
    }
}
