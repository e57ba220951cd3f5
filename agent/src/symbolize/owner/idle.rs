//! Which waits on a futex are waiting for work, not for a lock.

use super::super::Frame;
use super::{glob, python};

/// How much a row's word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// Waiting for work, whatever is further out.
    Idle,
    /// Waiting for a lock, whatever is further out.
    Lock,
    /// Waiting for work, unless a frame further out says that a lock is built on it.
    IdleUnless,
    /// Waiting for a lock, unless a Python function says what it uses the lock for: of such locks its library makes everything
    /// else that waits.
    LockUnless,
}

/// User frames that are looked at, innermost first, inlined ones included; a primitive is within these.
const DEPTH: usize = 24;

#[rustfmt::skip]
const ROWS: &[(&[&str], Says)] = &[
    // glibc and musl
    (&["pthread_mutex_*lock*", "__pthread_mutex_*lock*", "___pthread_mutex_*lock*", "__GI___pthread_mutex_*lock*",
       "__pthread_mutex_cond_lock*", "__lll_lock_wait*", "___lll_lock_wait*", "__GI___lll_lock_wait*", "pthread_rwlock_*", "__pthread_rwlock_*",
       "___pthread_rwlock_*", "pthread_spin_*", "mtx_lock", "mtx_timedlock"], Says::Lock),
    (&["sem_wait*", "sem_timedwait*", "sem_clockwait*", "__new_sem_*", "do_futex_wait*"], Says::LockUnless),
    (&["pthread_join", "pthread_timedjoin_np", "pthread_clockjoin_np", "__pthread_clockjoin_ex", "___pthread_join", "__pthread_join*",
       "__pthread_timedjoin*", "thrd_join"], Says::Idle),
    (&["pthread_cond_wait*", "pthread_cond_timedwait*", "pthread_cond_clockwait*", "__pthread_cond_*wait*",
       "___pthread_cond_*wait*", "__GI___pthread_cond_*wait*", "cnd_wait", "cnd_timedwait"], Says::IdleUnless),
    // C++
    (&["std::condition_variable::*", "std::_V2::condition_variable_any::*", "std::__1::condition_variable::*"], Says::IdleUnless),
    (&["std::thread::join*", "std::__1::thread::join*"], Says::Idle),
    (&["std::mutex::lock*", "std::timed_mutex::*", "std::recursive_mutex::*", "std::shared_mutex::*", "std::shared_timed_mutex::*"], Says::Lock),
    // Rust
    (&["std::sys::*mutex*", "std::sync::*mutex::*", "std::sync::*Mutex*", "std::sys::*rwlock*", "std::sync::*rwlock::*", "std::sync::*RwLock*",
       "std::sys::*once*", "std::sync::*once::*", "parking_lot::raw_mutex::*", "parking_lot::raw_rwlock::*", "parking_lot::raw_fair_mutex::*",
       "parking_lot::once::*", "<parking_lot::raw_*"], Says::Lock),
    (&["std::sync::*condvar::*", "std::sync::*Condvar*", "std::sys::*condvar*", "std::sys::*Condvar*", "parking_lot::condvar::*"], Says::IdleUnless),
    (&["std::thread::*park*", "std::thread::*join*", "std::thread::JoinHandle*", "std::sys::*::thread::Thread::join*",
       "std::thread::*scope*", "tokio::*park*", "tokio::*Park*", "<tokio::*park*", "rayon_core::sleep::*", "rayon_core::latch::*",
       "crossbeam_channel::context::Context::wait_until*", "crossbeam_channel::*recv*", "std::sync::mpmc::*recv*", "std::sync::mpmc::context::*",
       "async_io::driver::*", "futures_executor::local_pool::*", "parking::*"], Says::Idle),
    // Go
    (&["runtime.lock", "runtime.lock2", "runtime.lockWithRank*"], Says::Lock),
    (&["runtime.notesleep", "runtime.notetsleep*", "runtime.stopm", "runtime.mPark", "runtime.gcstopm", "runtime.stoplockedm",
       "runtime.sysmon", "runtime.findRunnable", "runtime.findrunnable", "runtime.semasleep", "runtime.templateThread"], Says::Idle),
    // JVM
    (&["ObjectMonitor::enter*", "ObjectMonitor::EnterI*", "ObjectMonitor::ReenterI*", "Mutex::lock*", "Monitor::lock*", "ObjectSynchronizer::*enter*"], Says::Lock),
    (&["ObjectMonitor::wait*", "Monitor::wait*", "MonitorLocker::wait*", "Unsafe_Park*", "Parker::park*", "JVM_Sleep*", "JavaThread::sleep*",
       "WatcherThread::*", "GCTaskManager::*", "WorkerThread::run*", "WorkGang::*", "PosixSemaphore::*wait*"], Says::Idle),
    // CPython
    (&["take_gil*", "PyEval_RestoreThread"], Says::Lock),
    (&["PyThread_acquire_lock*", "acquire_timed*", "lock_PyThread_acquire_lock*", "_PyMutex_Lock*"], Says::LockUnless),
    // Node and libuv
    (&["uv_mutex_lock", "uv_rwlock_*lock", "uv_sem_wait", "v8::base::Mutex::Lock*"], Says::Lock),
    (&["uv_cond_wait", "uv_cond_timedwait", "v8::base::ConditionVariable::*", "uv_thread_join"], Says::Idle),
];

/// Files and functions of Python's library that wait, by what for. The innermost function that is none of these wants a lock.
#[rustfmt::skip]
const PYTHON: &[(&str, &[&str], Says)] = &[
    ("*/threading.py", &["Condition.wait"], Says::IdleUnless),
    ("*/threading.py", &["Thread.join", "Thread._wait_for_tstate_lock", "_shutdown"], Says::Idle),
    ("*/threading.py", &["Semaphore.acquire", "BoundedSemaphore.acquire"], Says::Lock),
    ("*/queue.py", &["Queue.put"], Says::Lock),
    ("*/concurrent/futures/thread.py", &["_worker"], Says::Idle),
    ("*/multiprocessing/synchronize.py", &["SemLock.__enter__"], Says::LockUnless),
    ("*/multiprocessing/queues.py", &["Queue.get", "SimpleQueue.get"], Says::Idle),
];

/// Whether the innermost waiting primitive of a stack waits for work.
pub(super) fn is_idle(frames: &[Frame]) -> bool {
    let (mut idle, mut asked, mut known) = (false, false, false);
    for frame in frames.iter().filter(|f| !f.kernel).take(DEPTH) {
        let says = if &*frame.module == python::MODULE {
            if !asked {
                continue;
            }
            match says_python(frame) {
                // What it is used for was told by a function further in.
                None if known => continue,
                None => return false,
                says => says,
            }
        } else if asked {
            // A queue in C, of which only the taking end waits.
            if !known && glob::matches("*/_queue.cpython-*", &frame.module) {
                return true;
            }
            // A virtual machine's own semaphore: its threads wait for work by it.
            if frame.function.as_deref().and_then(says) == Some(Says::Idle) {
                return true;
            }
            continue;
        } else if idle && is_interpreter(&frame.module) {
            // The one condition variable that CPython itself waits for is that of its global lock.
            return false;
        } else {
            frame.function.as_deref().and_then(says)
        };
        match says {
            Some(Says::Idle) => return true,
            Some(Says::Lock) => return false,
            Some(Says::IdleUnless) => (idle, known) = (true, asked),
            Some(Says::LockUnless) => asked = true,
            None => {}
        }
    }
    idle
}

/// Whether a module is CPython's executable or library.
fn is_interpreter(module: &str) -> bool {
    let name = module.rsplit('/').next().unwrap_or_default();
    name.starts_with("python") || name.starts_with("libpython")
}

fn says_python(frame: &Frame) -> Option<Says> {
    let (file, function) = (frame.file.as_deref()?, frame.function.as_deref()?);
    let of = |(files, functions, _): &&(&str, &[&str], Says)| {
        functions.contains(&function) && glob::matches(files, file)
    };
    PYTHON.iter().find(of).map(|(.., says)| *says)
}

fn says(function: &str) -> Option<Says> {
    ROWS.iter()
        .find(|(patterns, _)| patterns.iter().any(|p| glob::matches(p, function)))
        .map(|(_, says)| *says)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str) -> Frame {
        Frame {
            function: Some(function.into()),
            file: None,
            line: 0,
            module: "/app/shop".into(),
            build_id: None,
            address: 1,
            inlined: false,
            kernel: false,
        }
    }

    #[test]
    fn idle_or_lock() {
        for (functions, expected) in [
            (
                &[
                    "futex_wait",
                    "pthread_cond_wait@@GLIBC_2.3.2",
                    "worker",
                    "start_thread",
                ][..],
                true,
            ),
            (
                &[
                    "__futex_abstimed_wait_common",
                    "___pthread_cond_timedwait64",
                    "worker",
                ],
                true,
            ),
            (&["__lll_lock_wait", "pthread_mutex_lock", "work"], false),
            (
                &[
                    "__lll_lock_wait",
                    "__pthread_mutex_cond_lock",
                    "pthread_cond_wait",
                    "work",
                ],
                false,
            ),
            (&["__pthread_clockjoin_ex", "main"], true),
            (&["sem_wait", "work"], false),
            (&["pthread_rwlock_rdlock", "work"], false),
            (
                &[
                    "syscall",
                    "std::sys::pal::unix::futex::futex_wait",
                    "std::sys::sync::mutex::futex::Mutex::lock_contended",
                    "f",
                ],
                false,
            ),
            (
                &[
                    "syscall",
                    "std::sys::pal::unix::futex::futex_wait",
                    "std::sys::sync::condvar::futex::Condvar::wait",
                    "f",
                ],
                true,
            ),
            (
                &[
                    "syscall",
                    "std::sys::pal::unix::futex::futex_wait",
                    "std::thread::park",
                    "f",
                ],
                true,
            ),
            (
                &[
                    "syscall",
                    "std::sys::sync::rwlock::futex::RwLock::read_contended",
                    "f",
                ],
                false,
            ),
            (
                &[
                    "syscall",
                    "parking_lot::condvar::Condvar::wait_until_internal",
                    "tokio::runtime::park::Inner::park",
                ],
                true,
            ),
            (
                &[
                    "syscall",
                    "parking_lot::raw_mutex::RawMutex::lock_slow",
                    "tokio::runtime::park::Inner::park",
                ],
                false,
            ),
            (
                &[
                    "syscall",
                    "std::sys::sync::condvar::futex::Condvar::wait",
                    "rayon_core::sleep::Sleep::sleep",
                ],
                true,
            ),
            (
                &[
                    "runtime.futex",
                    "runtime.futexsleep",
                    "runtime.notesleep",
                    "runtime.mPark",
                    "runtime.stopm",
                ],
                true,
            ),
            (
                &[
                    "runtime.futex",
                    "runtime.futexsleep",
                    "runtime.lock2",
                    "runtime.mallocgc",
                ],
                false,
            ),
            (
                &[
                    "pthread_cond_wait",
                    "os::PlatformEvent::park()",
                    "ObjectMonitor::EnterI(JavaThread*)",
                ],
                false,
            ),
            (
                &[
                    "pthread_cond_wait",
                    "os::PlatformEvent::park()",
                    "ObjectMonitor::wait(long, bool, JavaThread*)",
                ],
                true,
            ),
            (
                &[
                    "pthread_cond_timedwait",
                    "Parker::park(bool, long)",
                    "Unsafe_Park",
                ],
                true,
            ),
            (
                &[
                    "__new_sem_wait_slow64",
                    "PosixSemaphore::wait()",
                    "GangWorker::loop()",
                ],
                true,
            ),
            (
                &["pthread_cond_timedwait", "take_gil", "PyEval_RestoreThread"],
                false,
            ),
            (&["pthread_cond_wait", "uv_cond_wait", "worker"], true),
            (&["futex", "something"], false),
            (&[], false),
        ] {
            let frames: Vec<_> = functions.iter().map(|function| frame(function)).collect();
            assert_eq!(is_idle(&frames), expected, "{functions:?}");
        }
    }

    #[test]
    fn what_python_waits_for() {
        let python = |function: &str, file: &str| Frame {
            file: Some(format!("/usr/lib/python3.11/{file}").into()),
            module: python::MODULE.into(),
            ..frame(function)
        };
        let native = |functions: &[&str], module: &str| -> Vec<Frame> {
            let of = |function: &&str| Frame {
                module: module.into(),
                ..frame(function)
            };
            functions.iter().map(of).collect()
        };
        let lock = || {
            let libc = native(
                &["__futex_abstimed_wait_common", "do_futex_wait", "sem_clockwait"],
                "libc.so.6",
            );
            let interpreter = native(
                &["PyThread_acquire_lock_timed", "acquire_timed"],
                "/usr/bin/python3.11",
            );
            [libc, interpreter].concat()
        };
        let wait = || python("Condition.wait", "threading.py");
        let app = || python("Shop.pay", "shop.py");
        for (python, expected) in [
            (vec![app()], false),
            (vec![], false),
            (vec![python("RLock.acquire", "threading.py"), app()], false),
            (
                vec![
                    python("Condition.__enter__", "threading.py"),
                    python("Queue.get", "queue.py"),
                ],
                false,
            ),
            (vec![wait(), python("Queue.get", "queue.py"), app()], true),
            (vec![wait(), python("Queue.put", "queue.py"), app()], false),
            (vec![wait(), python("Event.wait", "threading.py"), app()], true),
            (
                vec![wait(), python("Semaphore.acquire", "threading.py"), app()],
                false,
            ),
            (vec![python("Thread.join", "threading.py"), app()], true),
            (vec![python("_worker", "concurrent/futures/thread.py")], true),
            (
                vec![
                    python("SemLock.__enter__", "multiprocessing/synchronize.py"),
                    app(),
                ],
                false,
            ),
            (
                vec![
                    python("SemLock.__enter__", "multiprocessing/synchronize.py"),
                    python("Queue.get", "multiprocessing/queues.py"),
                ],
                true,
            ),
            (vec![app(), wait()], false),
        ] {
            let stack = [lock(), python].concat();
            assert_eq!(is_idle(&stack), expected, "{stack:?}");
        }
        let queue = native(
            &["get"],
            "/usr/lib/python3.11/lib-dynload/_queue.cpython-311-x86_64-linux-gnu.so",
        );
        assert!(is_idle(&[lock(), queue, vec![app()]].concat()));
        // The global lock, where the interpreter has names and where it has none.
        let condition = native(&["pthread_cond_timedwait"], "libc.so.6");
        for (module, expected) in [
            ("/usr/bin/python3.11", false),
            ("/opt/libpython3.13.so.1.0", false),
            ("/srv/libwork.so", true),
        ] {
            let caller = native(&["something"], module);
            assert_eq!(
                is_idle(&[condition.clone(), caller, vec![app()]].concat()),
                expected,
                "{module}"
            );
        }
    }
}
