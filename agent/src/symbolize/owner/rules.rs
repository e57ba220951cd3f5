//! The table of code that is not the service's own: one row a runtime.

/// Frames of a runtime or of libraries. Within a list any pattern may match; lists that are not empty must all match.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Whose code it is.
    pub(super) runtime: &'static str,
    /// Patterns of the module's path.
    pub(super) modules: &'static [&'static str],
    /// Patterns of the function. For a Rust `<T as Trait>::f`, of `T`'s path, else of the trait's.
    pub(super) functions: &'static [&'static str],
    /// Patterns of the source file.
    pub(super) files: &'static [&'static str],
}

const fn functions(runtime: &'static str, functions: &'static [&'static str]) -> Row {
    Row {
        runtime,
        modules: &[],
        functions,
        files: &[],
    }
}

const fn modules(runtime: &'static str, modules: &'static [&'static str]) -> Row {
    Row {
        runtime,
        modules,
        functions: &[],
        files: &[],
    }
}

const fn files(runtime: &'static str, files: &'static [&'static str]) -> Row {
    Row {
        runtime,
        modules: &[],
        functions: &[],
        files,
    }
}

/// Where code that a runtime made is mapped.
pub(super) const GENERATED: &[&str] = &["[jit]", "[anon*", "//anon*", "/memfd:*", "/dev/zero*", "[heap]"];

/// Python code that is not the service's own, whatever its functions are called.
pub(super) const PYTHON: &str = "CPython, standard library and packages";
/// Its files.
pub(super) const PYTHON_LIBRARY: &[&str] = &[
    "<frozen *",
    "*/lib/python3*",
    "*/site-packages/*",
    "*/dist-packages/*",
];

/// Executables that run code which is not in them, and functions of theirs: an executable of such a name with such a function on the
/// stack is not the service's own, whatever else is in it (OpenSSL in Node, for example).
pub(super) const INTERPRETERS: &[(&[&str], &[&str])] = &[
    (&["node", "nodejs"], &["node::*", "v8::*", "Builtins_*", "uv_*"]),
    (
        &["python", "python2", "python3", "python2.*", "python3.*"],
        &["_Py*", "Py*"],
    ),
];

/// All rows; the first that matches makes a frame foreign, a frame that none matches is the service's own.
#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    modules("system libraries", &[
        "/lib/*.so", "/lib/*.so.*", "/lib64/*.so", "/lib64/*.so.*", "/lib32/*.so.*",
        "/usr/lib/*.so", "/usr/lib/*.so.*", "/usr/lib64/*.so", "/usr/lib64/*.so.*",
        "/usr/local/lib/*.so", "/usr/local/lib/*.so.*", "/nix/store/*/lib/*.so", "/nix/store/*/lib/*.so.*",
        "/snap/*/lib/*.so.*",
    ]),
    modules("database drivers", &[
        "*/libpq.so*", "*/libmysqlclient.so*", "*/libmariadb.so*", "*/libsqlite3.so*", "*/libhiredis.so*", "*/libmongoc-*.so*",
        "*/librdkafka.so*", "*/libodbc.so*", "*/libclntsh.so*", "*/libssl.so*", "*/libcrypto.so*",
    ]),
    // The C library, its loader and threads, wherever they are, and the compiler's runtime.
    modules("libc", &[
        "[vdso]", "[vsyscall]", "*/libc.so.6", "*/libc-2.*.so", "*/libpthread*.so*", "*/ld-linux*.so*", "*/ld-2.*.so",
        "*/ld-musl-*.so*", "*/libc.musl-*.so*", "*/libm.so.6", "*/librt*.so*", "*/libdl*.so*", "*/libgcc_s.so*",
    ]),
    functions("libc, linked statically", &[
        "_start", "__libc_*", "__GI_*", "_IO_*", "_dl_*", "_nl_*", "__lll_*", "__pthread_*", "pthread_*", "___pthread_*",
        "__futex_*", "__internal_*", "__syscall*", "syscall", "start_thread", "clone", "__clone*", "clone3", "__memset_*",
        "__memcpy_*", "__memmove_*", "__str*_avx*", "__str*_sse*", "__sched_yield", "sched_yield", "__restore_rt",
        "memcpy", "memmove", "memset", "memcmp", "strlen", "strcmp", "strncmp", "strchr", "printf", "fprintf", "snprintf",
        "sprintf", "vsnprintf", "*printf_internal", "vfprintf", "fwrite", "fread", "fflush", "fclose", "fopen", "fopen64",
        "fgets", "fputs", "puts", "qsort", "qsort_r",
        "read", "write", "pread", "pread64", "pwrite", "pwrite64", "readv", "writev", "open", "open64", "openat",
        "openat64", "close", "fsync", "fdatasync", "lseek", "poll", "ppoll", "select", "pselect", "epoll_wait",
        "epoll_pwait", "epoll_ctl", "accept", "accept4", "connect", "bind", "listen", "socket", "send", "sendto",
        "sendmsg", "recv", "recvfrom", "recvmsg", "nanosleep", "clock_nanosleep", "__clock_nanosleep*", "usleep", "sleep",
        "mmap", "mmap64", "munmap", "mremap", "madvise", "mprotect", "brk", "sbrk", "fork", "vfork", "execve", "wait4",
        "waitpid", "futex_wait*", "sem_wait", "sem_timedwait", "__new_sem_*", "ioctl", "fcntl", "fcntl64", "flock",
        "stat", "fstat", "lstat", "__xstat*", "getaddrinfo", "gethostbyname*", "__read", "__write", "__open*", "__close*",
        "__poll", "__select", "__nanosleep*", "__mmap*", "__munmap", "__brk", "__fork",
    ]),
    functions("allocators", &[
        "malloc", "calloc", "realloc", "free", "cfree", "posix_memalign", "aligned_alloc", "memalign", "valloc", "pvalloc", "reallocarray",
        "__malloc", "__calloc", "__realloc", "__free", "__cfree", "__memalign", "__valloc", "__pvalloc", "__aligned_alloc", "__reallocarray",
        "__posix_memalign", "__libc_memalign", "__libc_malloc", "__libc_calloc", "__libc_realloc", "__libc_free", "_mid_memalign*", "default_malloc", "__libc_malloc_impl",
        "_int_malloc", "_int_free*", "_int_realloc", "_int_memalign", "malloc_consolidate", "sysmalloc*", "systrim*",
        "tcache_*", "unlink_chunk*", "arena_get*", "new_heap*", "grow_heap*", "alloc_new_heap*", "ptmalloc_*", "__malloc_*",
        "je_*", "jemalloc_*", "_rjem_*", "tc_malloc*", "tc_free*", "tc_new*", "tc_delete*", "tcmalloc::*", "mi_malloc*", "mi_calloc*", "mi_zalloc*", "mi_realloc*", "mi_free*",
        "mi_new*", "mi_heap_*", "mi_aligned_*", "_mi_*",
        "rpmalloc*", "operator new*", "operator delete*",
    ]),
    modules("allocators", &["*/libjemalloc*.so*", "*/libtcmalloc*.so*", "*/libmimalloc*.so*", "*/libsnmalloc*.so*"]),
    functions("C++ standard library", &[
        "std::*", "__gnu_cxx::*", "__cxxabiv1::*", "__cxa_*", "_Unwind_*", "__gxx_*", "void std::*", "bool std::*", "auto std::*",
        "decltype*std::*", "boost::asio::*", "absl::*", "folly::*",
    ]),
    modules("C++ standard library", &["*/libstdc++.so*", "*/libc++.so*", "*/libc++abi.so*"]),
    functions("Rust standard library", &[
        "core::*", "alloc::*", "std::*", "test::run_test*", "proc_macro::*", "hashbrown::*", "compiler_builtins::*", "backtrace::*",
        "gimli::*", "addr2line::*", "__rust_*", "__rustc*", "rust_begin_unwind", "rust_eh_personality", "rust_panic*",
        "__rdl_*", "__rg_*", "lang_start*", "rustc_demangle::*", "_ZN3std*", "libc::*",
    ]),
    functions("Rust runtimes", &[
        "tokio::*", "tokio_util::*", "tokio_stream::*", "tokio_rustls::*", "async_std::*", "async_io::*", "async_executor::*",
        "async_task::*", "smol::*", "rayon::*", "rayon_core::*", "mio::*", "futures::*", "futures_*::*", "hyper::*",
        "hyper_util::*", "h2::*", "tower::*", "tower_*::*", "axum::*", "axum_core::*", "actix_rt::*", "actix_server::*",
        "parking_lot::*", "parking_lot_core::*", "lock_api::*", "crossbeam::*", "crossbeam_*::*", "flume::*", "once_cell::*",
        "polling::*", "rustix::*", "socket2::*", "tracing::*", "tracing_*::*", "bytes::*", "pin_project*::*", "glommio::*",
        "monoio::*", "io_uring::*", "threadpool::*",
    ]),
    functions("Rust database drivers and clients", &[
        "sqlx::*", "sqlx_core::*", "sqlx_postgres::*", "sqlx_mysql::*", "sqlx_sqlite::*", "tokio_postgres::*", "postgres::*",
        "postgres_protocol::*", "diesel::*", "diesel_async::*", "sea_orm::*", "sea_query::*", "mysql::*", "mysql_async::*",
        "mysql_common::*", "rusqlite::*", "redis::*", "fred::*", "mongodb::*", "deadpool::*", "deadpool_*::*", "bb8::*", "r2d2::*",
        "rdkafka::*", "lapin::*", "reqwest::*", "ureq::*", "tonic::*", "rustls::*", "native_tls::*", "openssl::*", "ring::*",
        "serde::*", "serde_json::*", "prost::*",
    ]),
    functions("C database drivers, linked statically", &[
        "PQexec*", "PQsend*", "PQgetResult", "PQconnect*", "PQprepare", "pqReadData", "pqWaitTimed", "pqSocketCheck", "pqsecure_*",
        "mysql_real_*", "mysql_stmt_*", "mysql_query", "mysql_send_query", "sqlite3_*", "sqlite3Vdbe*", "redisCommand*",
        "redisvCommand*", "redisGetReply*", "mongoc_*", "rd_kafka_*",
    ]),
    modules("packages of interpreters", &[
        "*/site-packages/*.so", "*/dist-packages/*.so", "*/node_modules/*.node", "*/gems/*.so", "*/vendor/bundle/*.so",
    ]),
    files("Rust standard library", &["/rustc/*/library/*", "*/lib/rustlib/src/rust/library/*", "library/std/src/*", "library/core/src/*", "library/alloc/src/*"]),
    files("Rust packages", &["*/.cargo/registry/*", "*/cargo/registry/src/*", "*/.cargo/git/checkouts/*"]),
    // In the cache of modules, the same with `-trimpath`, and vendored.
    files("Go packages", &["*/pkg/mod/*@*", "*@v*/*.go", "*/vendor/*.go", "*/usr/local/go/src/*", "*/go/src/runtime/*"]),
    functions("Go, assembly and cgo", &[
        "runtime.*", "runtime/*", "_cgo_*", "_cgoexp_*", "crosscall*", "x_cgo_*", "_rt0_*", "gogo", "callRet", "gosave_systemstack_switch",
        "setg_gcc", "aeshashbody", "memeqbody", "cmpbody", "indexbytebody", "type:.*", "go:*", "type..*", "go.*",
    ]),
    modules("JVM", &[
        "*/libjvm.so", "*/libjava.so", "*/libjli.so", "*/libnio.so", "*/libnet.so", "*/libzip.so", "*/libverify.so", "*/libj9*.so",
        "*/libextnet.so", "*/libjimage.so",
    ]),
    Row {
        runtime: "JVM, generated",
        modules: GENERATED,
        functions: &[
            "Interpreter", "interpreter", "StubRoutines*", "call_stub", "*stub*[*", "vtable stub", "itable stub", "*Stub", "I2C/C2I*",
            "*Runtime1 stub", "*_stub", "*throw_exception", "_*_Java", "g1_*_barrier_slow", "shenandoah_*_slow", "load_barrier_on_*",
            "resolve_*_call", "*Blob", "jni_fast_*", "*adapters", "vtable chunks", "*ignature *andler*", "InlineCacheBuffer",
            "java.*", "javax.*", "jdk.*", "sun.*", "com.sun.*", "Ljava/*", "Ljavax/*", "Ljdk/*", "Lsun/*", "Lcom/sun/*",
            "void java.*", "int java.*", "long java.*", "boolean java.*", "void jdk.*", "int jdk.*", "long jdk.*", "void sun.*",
            "java.lang.* java.*", "java.lang.* jdk.*",
        ],
        files: &[],
    },
    Row {
        runtime: "JVM, database drivers and frameworks",
        modules: GENERATED,
        functions: &[
            "org.postgresql.*", "com.mysql.*", "org.mariadb.*", "oracle.jdbc.*", "com.microsoft.sqlserver.*", "com.zaxxer.hikari.*",
            "org.hibernate.*", "org.apache.tomcat.*", "org.apache.catalina.*", "org.apache.coyote.*", "org.eclipse.jetty.*",
            "org.springframework.*", "io.netty.*", "io.vertx.*", "io.lettuce.*", "redis.clients.*", "com.mongodb.*", "org.apache.kafka.*",
            "kotlin.*", "kotlinx.*", "scala.*", "akka.*", "Lorg/postgresql/*", "Lcom/mysql/*", "Lcom/zaxxer/hikari/*", "Lorg/hibernate/*",
            "Lorg/springframework/*", "Lio/netty/*", "Lkotlin/*", "Lscala/*",
        ],
        files: &[],
    },
    functions("Node", &["v8::*", "uv_*", "uv__*", "Builtins_*", "napi_*", "cppgc::*"]),
    Row { runtime: "Node", modules: &["*/node", "*/nodejs", "*/libnode.so*"], functions: &["node::*", "main"], files: &[] },
    Row {
        runtime: "Node, generated",
        modules: GENERATED,
        functions: &["Builtin:*", "BytecodeHandler:*", "Stub:*", "RegExp:*", "* node:*", "*node:internal/*"],
        files: &[],
    },
    modules("Node", &["*/libnode.so*", "*/libuv.so*", "*/libv8*.so*"]),
    Row {
        runtime: "CPython",
        modules: &["*/python", "*/python[23]*", "*/python2*", "*/python3*", "*/uwsgi"],
        functions: &[
            "_Py*", "Py*", "py*", "_py*", "*_vectorcall*", "vectorcall*", "*_call", "call_*", "cfunction_*", "method_*", "slot_*",
            "builtin_*", "object_*", "type_*", "function_code_*", "sock_*", "os_*", "time_*", "select_*", "lock_*", "acquire_*",
            "take_gil*", "drop_gil*", "create_gil*", "run_*", "main", "gc_*", "list_*", "dict_*", "tuple_*", "unicode_*", "bytes_*",
            "iobase_*", "_io_*", "fileio_*", "bufferedio_*", "buffered_*", "_buffered*", "thread_*", "do_call*", "exec_*", "import_*",
        ],
        files: &[],
    },
    modules("CPython", &["*/libpython*.so*", "*/lib-dynload/*.so"]),
    Row { runtime: PYTHON, modules: GENERATED, functions: &[], files: PYTHON_LIBRARY },
    modules("Ruby, Perl, PHP, .NET", &["*/libruby*.so*", "*/libperl.so*", "*/libphp*.so*", "*/libcoreclr.so", "*/libclrjit.so", "*/libSystem.Native.so"]),
    Row {
        runtime: "Ruby, PHP",
        modules: &["*/ruby*", "*/php*"],
        functions: &["rb_*", "ruby_*", "vm_*", "zend_*", "php_*", "ZEND_*", "execute_ex", "main"],
        files: &[],
    },
];

/// The first elements of the import paths of Go's standard library.
pub(super) const GO_STANDARD: &[&str] = &[
    "archive",
    "bufio",
    "builtin",
    "bytes",
    "cmp",
    "compress",
    "container",
    "context",
    "crypto",
    "database",
    "debug",
    "embed",
    "encoding",
    "errors",
    "expvar",
    "flag",
    "fmt",
    "go",
    "hash",
    "html",
    "image",
    "index",
    "internal",
    "io",
    "iter",
    "log",
    "maps",
    "math",
    "mime",
    "net",
    "os",
    "path",
    "plugin",
    "reflect",
    "regexp",
    "runtime",
    "slices",
    "sort",
    "strconv",
    "strings",
    "structs",
    "sync",
    "syscall",
    "testing",
    "text",
    "time",
    "type",
    "unicode",
    "unique",
    "unsafe",
    "vendor",
    "weak",
];
