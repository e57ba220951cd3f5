//! The owning frame: the innermost frame of the service's own code, past libraries and runtimes (DESIGN.md 4.3).

use std::sync::Arc;

use serde::Deserialize;

use super::name::STUB;
use super::{Frame, Owner, python};

mod glob;
mod idle;
mod rules;
#[cfg(test)]
mod tests;

/// A user's rule: frames that match every given pattern (`*` is any run of characters) are not the service's own, or,
/// with `own = true`, are. The first rule that matches decides, before any built-in rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnerRule {
    /// Pattern of the module's path as the process sees it.
    pub module: Option<String>,
    /// Pattern of the demangled function.
    pub function: Option<String>,
    /// Pattern of the source file as the debug information writes it.
    pub file: Option<String>,
    /// The frames are the service's own.
    #[serde(default)]
    pub own: bool,
}

impl OwnerRule {
    fn matches(&self, frame: &Frame) -> bool {
        let fits =
            |pattern: &Option<String>, text: &str| pattern.as_deref().is_none_or(|p| glob::matches(p, text));
        let empty = self.module.is_none() && self.function.is_none() && self.file.is_none();
        !empty
            && fits(&self.module, &frame.module)
            && fits(&self.function, frame.function.as_deref().unwrap_or_default())
            && fits(&self.file, frame.file.as_deref().unwrap_or_default())
    }
}

/// What an owner was chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// A frame of the service's own code.
    Own,
    /// A frame of the executable, for want of one of its own.
    Executable,
    /// The service's own frame has no name: its index.
    Nameless(usize),
    /// There is no frame of the service's own.
    NoFrame,
}

/// What a stack says beyond its frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) owner: Owner,
    pub(super) ground: Ground,
    /// A futex wait with this stack waits for work.
    pub(super) idle: bool,
}

/// The user's rules and the built-in table.
#[derive(Debug)]
pub(super) struct Owners {
    user: Vec<OwnerRule>,
    unknown: Arc<str>,
}

impl Owners {
    pub(super) fn new(user: &[OwnerRule]) -> Self {
        Self {
            user: user.to_vec(),
            unknown: "(unknown)".into(),
        }
    }

    /// Judges a stack of a process with this executable.
    pub(super) fn judge(&self, frames: &[Frame], executable: Option<&str>) -> Judged {
        let (owner, ground) = self.owner(frames, executable);
        Judged {
            owner,
            ground,
            idle: idle::is_idle(frames),
        }
    }

    fn owner(&self, frames: &[Frame], executable: Option<&str>) -> (Owner, Ground) {
        let around = Around::new(frames);
        let user = || frames.iter().enumerate().filter(|(_, frame)| !frame.kernel);
        let mut own = user().filter(|(_, frame)| self.is_own(frame, &around)).peekable();
        let first_own = own.peek().copied();
        let user = || user().map(|(_, frame)| frame);
        // A nameless frame of one's own is less of an answer than its named caller.
        let in_executable =
            |frame: &&Frame| executable.is_some_and(|path| path == &*frame.module) && !is_stub(frame);
        let found = own
            .find_map(|(_, frame)| Some((function_of(frame)?, Ground::Own)))
            .or_else(|| {
                let mut executable = user().filter(in_executable).filter(|_| first_own.is_none());
                executable.find_map(|frame| Some((function_of(frame)?, Ground::Executable)))
            });
        if let Some(found) = found {
            return found;
        }
        let ground = first_own.map_or(Ground::NoFrame, |(index, _)| Ground::Nameless(index));
        let known = |frame: &&Frame| &*frame.module != "[unknown]";
        let frame = first_own
            .map(|(_, frame)| frame)
            .filter(known)
            .or_else(|| user().find(in_executable))
            .or_else(|| user().find(known));
        let frame = frame.or_else(|| frames.first());
        let owner = Owner {
            function: Arc::clone(&self.unknown),
            file: frame.map_or_else(|| "".into(), |frame| base(&frame.module)),
        };
        (owner, ground)
    }

    fn is_own(&self, frame: &Frame, around: &Around<'_>) -> bool {
        // The linker's, whatever is said of the module that it is in.
        if is_stub(frame) {
            return false;
        }
        if let Some(rule) = self.user.iter().find(|rule| rule.matches(frame)) {
            return rule.own;
        }
        runtime_of(frame, around).is_none()
    }
}

/// What the other frames of a stack say about each of them.
#[derive(Debug)]
struct Around<'a> {
    /// It is a stack of Go.
    go: bool,
    /// The interpreter's executable: the code that it runs is elsewhere.
    interpreter: Option<&'a str>,
}

impl<'a> Around<'a> {
    fn new(frames: &'a [Frame]) -> Self {
        let of_go = |function: &str| function.starts_with("runtime.") || function.starts_with("runtime/");
        // Its name alone says little: somebody's own program may be called `node`.
        let interprets = |frame: &&Frame| {
            let name = frame.module.rsplit('/').next().unwrap_or_default();
            let function = frame.function.as_deref().unwrap_or_default();
            let any = |patterns: &[&str], text| patterns.iter().any(|p| glob::matches(p, text));
            rules::INTERPRETERS
                .iter()
                .any(|(names, functions)| any(names, name) && any(functions, function))
        };
        Self {
            go: frames.iter().filter_map(|f| f.function.as_deref()).any(of_go),
            interpreter: frames.iter().find(interprets).map(|frame| &*frame.module),
        }
    }
}

/// Whether a frame is a stub between a call and the function that is called: its caller is what does something.
fn is_stub(frame: &Frame) -> bool {
    let function = frame.function.as_deref();
    function.is_some_and(|name| name.ends_with(STUB))
}

/// The runtime or library that a frame belongs to by the built-in table.
fn runtime_of(frame: &Frame, around: &Around<'_>) -> Option<&'static str> {
    let function = frame.function.as_deref().unwrap_or_default();
    if &*frame.module == python::MODULE {
        let file = frame.file.as_deref().unwrap_or_default();
        let library = rules::PYTHON_LIBRARY.iter().any(|p| glob::matches(p, file));
        return library.then_some(rules::PYTHON);
    }
    if around.go && is_go_standard(function) {
        return Some("Go standard library");
    }
    if around.interpreter == Some(&*frame.module) {
        return Some("interpreter");
    }
    let generated = rules::GENERATED
        .iter()
        .any(|module| glob::matches(module, &frame.module));
    let subject = if generated {
        method(function)
    } else {
        subject(function)
    };
    let file = frame.file.as_deref().unwrap_or_default();
    let any = |patterns: &[&str], text: &str| {
        patterns.is_empty() || patterns.iter().any(|p| glob::matches(p, text))
    };
    rules::ROWS
        .iter()
        .find(|row| any(row.modules, &frame.module) && any(row.functions, subject) && any(row.files, file))
        .map(|row| row.runtime)
}

/// The method that a Java virtual machine means by `long com.shop.Orders.load(int)`; anything else stays as it is.
fn method(function: &str) -> &str {
    let name = function.split('(').next().unwrap_or(function);
    match name.rsplit_once(' ') {
        Some((_, method)) if name.len() < function.len() && method.contains('.') => method,
        _ => function,
    }
}

/// The path that says whose a function is: itself, or in `<T as Trait>::f` the path of `T`, or of the trait where `T`
/// is a parameter or a primitive type.
fn subject(function: &str) -> &str {
    let Some(inner) = function.strip_prefix('<') else {
        return without_result(function);
    };
    let (subject, of_trait) = split_as(inner);
    let subject = subject
        .trim_start_matches(['&', '*', '[', '(', '<'])
        .trim_start_matches("mut ")
        .trim_start_matches("const ")
        .trim_start_matches("dyn ");
    if subject.contains("::") {
        subject
    } else {
        of_trait.unwrap_or(subject)
    }
}

/// `shop::load<int>(int)` of `std::string shop::load<int>(int)`: names of C++ have the type of the result where the function comes
/// from a template.
fn without_result(function: &str) -> &str {
    let (mut depth, mut start) = (0u32, 0);
    for (at, c) in function.char_indices() {
        let rest = &function[at..];
        match c {
            // An operator's own signs are no brackets, and `operator new` has a space.
            'o' if rest.starts_with("operator") => return &function[start..],
            '(' if depth == 0 && !rest.starts_with("(anonymous namespace)") => return &function[start..],
            '<' | '(' | '[' | '{' => depth += 1,
            '>' | ')' | ']' | '}' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 => start = at + 1,
            _ => {}
        }
    }
    // No list of parameters: no name of C++.
    function
}

/// Splits `T as Trait>::f` at the ` as ` outside of angle brackets.
fn split_as(inner: &str) -> (&str, Option<&str>) {
    let mut depth = 0u32;
    for (at, c) in inner.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if depth == 0 => return (&inner[..at], None),
            '>' if !inner[..at].ends_with('-') => depth -= 1,
            ' ' if depth == 0 && inner[at..].starts_with(" as ") => {
                return (&inner[..at], Some(&inner[at + 4..]));
            }
            _ => {}
        }
    }
    (inner, None)
}

/// Whether a Go function's package is of the standard library: `net/http.(*conn).serve`, not `shop/net.Dial`.
fn is_go_standard(function: &str) -> bool {
    if function.contains("::") {
        return false;
    }
    let path = &function[..function.find(['(', '[', '{']).unwrap_or(function.len())];
    let slash = path.find('/');
    let first = match slash {
        Some(slash) => &path[..slash],
        None => path.split('.').next().unwrap_or_default(),
    };
    (slash.is_some() || function.contains('.')) && rules::GO_STANDARD.contains(&first)
}

/// The owner that a frame with a name makes.
fn function_of(frame: &Frame) -> Option<Owner> {
    Some(Owner {
        function: frame.function.clone()?,
        file: file_of(frame),
    })
}

/// The base name of the source file, else of the module.
fn file_of(frame: &Frame) -> Arc<str> {
    base(frame.file.as_ref().unwrap_or(&frame.module))
}

fn base(path: &Arc<str>) -> Arc<str> {
    match path.rsplit_once('/') {
        Some((_, base)) if !base.is_empty() => Arc::from(base),
        _ => Arc::clone(path),
    }
}
