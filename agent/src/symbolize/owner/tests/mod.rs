//! The tables, one case a line.

use super::*;

mod interpreters;

fn frame(module: &str, function: &str, file: &str) -> Frame {
    let some = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
    Frame {
        function: some(function),
        file: some(file),
        line: 1,
        module: module.into(),
        build_id: None,
        address: 1,
        inlined: false,
        kernel: module == "[kernel]",
    }
}

const APP: &str = "/app/shop";
const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

fn owner_in(executable: &str, frames: &[(&str, &str, &str)]) -> (String, String) {
    let frames: Vec<_> = frames.iter().map(|(m, f, s)| frame(m, f, s)).collect();
    let (owner, _) = Owners::new(&[]).owner(&frames, Some(executable));
    (owner.function.to_string(), owner.file.to_string())
}

fn owner(frames: &[(&str, &str, &str)]) -> (String, String) {
    owner_in(APP, frames)
}

fn is(function: &str, file: &str) -> (String, String) {
    (function.into(), file.into())
}

#[test]
fn c_and_cpp() {
    let stack = [
        ("[kernel]", "do_futex", ""),
        (LIBC, "", ""),
        (LIBC, "malloc", ""),
        (APP, "operator new(unsigned long)", ""),
        (
            APP,
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "/usr/include/c++/12/bits/stl_vector.h",
        ),
        (APP, "__gnu_cxx::new_allocator<int>::allocate(unsigned long)", ""),
        (APP, "Cache::insert(int)", "/src/shop/cache.cc"),
        (APP, "main", "/src/shop/main.cc"),
    ];
    assert_eq!(owner(&stack), is("Cache::insert(int)", "cache.cc"));
    // Static: libc by name.
    assert_eq!(
        owner(&[
            (APP, "__libc_write", ""),
            (APP, "__calloc", ""),
            (APP, "je_malloc", ""),
            (APP, "save", "")
        ]),
        is("save", "shop")
    );
    // A program in a directory of libraries is no library.
    let postgres = "/usr/lib/postgresql/15/bin/postgres";
    assert_eq!(
        owner_in(
            postgres,
            &[(LIBC, "epoll_wait", ""), (postgres, "WaitEventSetWait", "")]
        ),
        is("WaitEventSetWait", "postgres")
    );
    // A library of the service's own is its code.
    assert_eq!(
        owner(&[("/app/lib/libshop.so", "price", "")]),
        is("price", "libshop.so")
    );
}

#[test]
fn rust() {
    let stack = [
        (LIBC, "syscall", ""),
        (
            APP,
            "std::sys::pal::unix::futex::futex_wait",
            "/rustc/abc/library/std/src/sys/pal/unix/futex.rs",
        ),
        (
            APP,
            "<alloc::vec::Vec<shop::Order> as core::iter::Extend<shop::Order>>::extend",
            "",
        ),
        (APP, "<F as tokio::task::Spawn>::call", ""),
        (APP, "<&mut T as core::fmt::Debug>::fmt", ""),
        (
            APP,
            "serde_json::de::parse",
            "/root/.cargo/registry/src/index.crates.io-6f17d22bba15001f/serde_json-1.0.0/src/de.rs",
        ),
        (APP, "shop::orders::load::{{closure}}", "src/orders.rs"),
        (APP, "tokio::runtime::task::core::Core<T,S>::poll", ""),
        (APP, "shop::main", "src/main.rs"),
    ];
    assert_eq!(owner(&stack), is("shop::orders::load::{{closure}}", "orders.rs"));
    assert_eq!(
        owner(&[
            (APP, "core::fmt::write", ""),
            (APP, "<shop::Order as core::fmt::Display>::fmt", "")
        ]),
        is("<shop::Order as core::fmt::Display>::fmt", "shop")
    );
    assert_eq!(
        owner(&[
            (
                APP,
                "<core::pin::Pin<P> as core::future::future::Future>::poll",
                ""
            ),
            (APP, "shop::f", "")
        ]),
        is("shop::f", "shop")
    );
    assert_eq!(
        owner(&[(APP, "rayon_core::sleep::Sleep::sleep", ""), (APP, "shop::g", "")]),
        is("shop::g", "shop")
    );
}

#[test]
fn subjects() {
    for (function, expected) in [
        ("shop::f", "shop::f"),
        ("<T as core::Any>::f", "core::Any>::f"),
        (
            "<shop::A<dyn Fn() -> u8> as core::B>::f",
            "shop::A<dyn Fn() -> u8>",
        ),
        ("<&mut shop::A as core::B>::f", "shop::A"),
        ("<dyn shop::A>::f", "shop::A"),
        ("<[u8] as std::io::Read>::read", "std::io::Read>::read"),
    ] {
        assert_eq!(subject(function), expected, "{function}");
    }
}

#[test]
fn go() {
    let stack = [
        (
            APP,
            "runtime.futex.abi0",
            "/usr/local/go/src/runtime/sys_linux_amd64.s",
        ),
        (APP, "internal/poll.(*FD).Read", ""),
        (APP, "net.(*conn).Read", ""),
        (APP, "bufio.(*Reader).fill", ""),
        (APP, "database/sql.(*DB).QueryContext", ""),
        (APP, "vendor/golang.org/x/net/http2.f", ""),
        (
            APP,
            "github.com/lib/pq.(*conn).recv",
            "/root/go/pkg/mod/github.com/lib/pq@v1.10.9/conn.go",
        ),
        (APP, "shop/net.Load[...]", "/src/shop/net/load.go"),
        (APP, "main.main", "/src/shop/main.go"),
        (APP, "runtime.goexit", ""),
    ];
    assert_eq!(owner(&stack), is("shop/net.Load[...]", "load.go"));
    assert_eq!(
        owner(&[(APP, "runtime.mallocgc", ""), (APP, "main.grow", "")]),
        is("main.grow", "shop")
    );
    assert_eq!(
        owner(&[(APP, "runtime.x", ""), (APP, "example.com/shop/os.Open", "")]),
        is("example.com/shop/os.Open", "shop")
    );
    // Not a Go stack: `log.part.0` is a piece of a C function.
    assert_eq!(
        owner(&[(APP, "log.part.0", ""), (APP, "main", "")]),
        is("log.part.0", "shop")
    );
}

#[test]
fn drivers_of_databases_are_libraries() {
    let python = "/srv/shop/venv/bin/python3";
    for (module, function) in [
        (
            APP,
            "<sqlx_postgres::connection::PgConnection as sqlx_core::executor::Executor>::fetch_many",
        ),
        (APP, "tokio_postgres::client::Client::query_raw"),
        (APP, "PQexecParams"),
        (APP, "sqlite3_step"),
        ("/opt/shop/lib/libpq.so.5", "PQexec"),
        (
            "/srv/shop/venv/lib/python3.12/site-packages/psycopg_c/_psycopg.cpython-312-x86_64-linux-gnu.so",
            "execute",
        ),
        (python, "_PyEval_EvalFrameDefault"),
    ] {
        let stack = [
            (LIBC, "poll", ""),
            (module, function, ""),
            (APP, "shop::orders", ""),
        ];
        assert_eq!(owner(&stack), is("shop::orders", "shop"), "{module} {function}");
    }
    // Go's are packages of others by their path, which only a module cache has.
    let stack = [
        (APP, "net.(*conn).Read", ""),
        (
            APP,
            "github.com/lib/pq.(*conn).recv",
            "/root/go/pkg/mod/github.com/lib/pq@v1.10.9/conn.go",
        ),
        (APP, "database/sql.(*DB).query", ""),
        (APP, "main.load", "/src/main.go"),
        (APP, "runtime.main", ""),
    ];
    assert_eq!(owner(&stack).0, "main.load");
}

#[test]
fn packages_of_go_wherever_they_are() {
    for file in [
        "/root/go/pkg/mod/example.com/ledger@v1.2.3/ledger.go",
        // Built with -trimpath.
        "example.com/ledger@v1.2.3/ledger.go",
        "/src/shop/vendor/example.com/ledger/ledger.go",
    ] {
        let stack = [
            (APP, "syscall.read", ""),
            (APP, "example.com/ledger.(*conn).Exec", file),
            (APP, "database/sql.(*DB).exec", ""),
            (APP, "main.load", "/src/shop/orders.go"),
            (APP, "runtime.main", ""),
        ];
        assert_eq!(owner(&stack), is("main.load", "orders.go"), "{file}");
    }
    // Of a stack that is broken off nothing but assembly may tell what it is.
    let stack = [
        (APP, "runtime/internal/syscall.Syscall6", ""),
        (APP, "syscall.read", ""),
        (APP, "main.load", ""),
    ];
    assert_eq!(owner(&stack).0, "main.load");
}

#[test]
fn results_of_templates_say_nothing() {
    for (function, own) in [
        (
            "std::vector<int, std::allocator<int> > shop::load<int>(int)",
            true,
        ),
        ("std::string (anonymous namespace)::name<int>(int const&)", true),
        (
            "shop::Order const* std::find<shop::Order const*>(shop::Order)",
            false,
        ),
        ("unsigned long std::accumulate<int*>(int*, int*)", false),
        ("shop::run(int)::{lambda(int)#1}::operator()(int) const", true),
        ("bool operator==<int>(std::pair<int, int>)", true),
    ] {
        let stack = [(LIBC, "read", ""), (APP, function, ""), (APP, "caller", "")];
        let expected = if own { function } else { "caller" };
        assert_eq!(owner(&stack), is(expected, "shop"));
    }
}

#[test]
fn without_a_name() {
    // Stripped executable under libc: its file is all there is.
    assert_eq!(
        owner(&[(LIBC, "read", ""), (APP, "", "")]),
        is("(unknown)", "shop")
    );
    // A named caller beats a nameless inner frame of one's own.
    assert_eq!(
        owner(&[(APP, "", ""), (APP, "shop::f", "")]),
        is("shop::f", "shop")
    );
    assert_eq!(owner(&[(LIBC, "read", "")]), is("(unknown)", "libc.so.6"));
    // Its module, also where the debug information of the library is installed.
    let stack = [(LIBC, "read", "../sysdeps/unix/sysv/linux/read.c")];
    assert_eq!(owner(&stack), is("(unknown)", "libc.so.6"));
    assert_eq!(
        owner(&[("[unknown]", "", ""), (LIBC, "read", "")]),
        is("(unknown)", "libc.so.6")
    );
    assert_eq!(
        owner(&[("[kernel]", "schedule", "")]),
        is("(unknown)", "[kernel]")
    );
    assert_eq!(owner(&[]), is("(unknown)", ""));
}

#[test]
fn the_users_rules_come_first() {
    let rules = [
        OwnerRule {
            function: Some("shop::middleware::*".into()),
            ..OwnerRule::default()
        },
        OwnerRule {
            module: Some(LIBC.into()),
            function: Some("qsort".into()),
            own: true,
            ..OwnerRule::default()
        },
        OwnerRule::default(),
    ];
    let owners = Owners::new(&rules);
    let stack = [
        frame(APP, "shop::middleware::log", ""),
        frame(APP, "shop::cart", ""),
    ];
    assert_eq!(&*owners.owner(&stack, None).0.function, "shop::cart");
    let stack = [frame(LIBC, "qsort", ""), frame(APP, "shop::cart", "")];
    assert_eq!(&*owners.owner(&stack, None).0.function, "qsort");
    let parsed: Result<OwnerRule, _> = serde_json::from_str(r#"{"functoin": "x"}"#);
    assert!(parsed.unwrap_err().to_string().contains("functoin"));
}

#[test]
fn names_of_one_runtime_are_own_code_elsewhere() {
    for function in [
        "shop::OrderStub",
        "rb_insert",
        "mi_update",
        "node::Graph::walk()",
        "java.x",
        "main",
        "Py_x",
    ] {
        assert_eq!(
            owner(&[(LIBC, "read", ""), (APP, function, "")]),
            is(function, "shop")
        );
    }
}
