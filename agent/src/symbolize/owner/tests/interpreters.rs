//! Interpreters, and virtual machines.

use super::*;

#[test]
fn interpreters_as_far_as_native_frames_allow() {
    let python = "/usr/bin/python3.11";
    let stack = [
        (LIBC, "read", ""),
        (python, "_Py_read", ""),
        (python, "_PyEval_EvalFrameDefault", ""),
        (python, "Py_RunMain", ""),
    ];
    assert_eq!(owner_in(python, &stack), is("_Py_read", "python3.11"));
    let extension = [stack[0], ("/app/venv/shop_native.so", "parse_rows", ""), stack[2]];
    assert_eq!(owner_in(python, &extension), is("parse_rows", "shop_native.so"));
    let node = "/usr/local/bin/node";
    let stack = [
        (node, "uv__read", ""),
        (
            node,
            "node::StreamBase::WriteString(v8::FunctionCallbackInfo<v8::Value> const&)",
            "",
        ),
        (node, "Builtins_InterpreterEntryTrampoline", ""),
        ("[jit]", "LazyCompile:*emit node:events:513", ""),
        ("[jit]", "LazyCompile:*checkout /app/cart.js:12", ""),
    ];
    assert_eq!(
        owner_in(node, &stack),
        is("LazyCompile:*checkout /app/cart.js:12", "[jit]")
    );
    let java = "/opt/jdk/bin/java";
    let stack = [
        ("/opt/jdk/lib/libnet.so", "NET_Read", ""),
        ("/opt/jdk/lib/server/libjvm.so", "JavaCalls::call", ""),
        ("[jit]", "Ljava/net/SocketInputStream;::read", ""),
        ("[jit]", "Lcom/shop/Orders;::load", ""),
    ];
    assert_eq!(owner_in(java, &stack), is("Lcom/shop/Orders;::load", "[jit]"));
    // As the virtual machine itself writes them (`jcmd PID Compiler.perfmap`).
    let stack = [
        (
            "[jit]",
            "java.util.List java.util.Collections.sort(java.util.List)",
            "",
        ),
        (
            "[jit]",
            "java.sql.ResultSet org.postgresql.jdbc.PgStatement.executeQuery(java.lang.String)",
            "",
        ),
        (
            "[jit]",
            "com.shop.Order com.shop.Orders.load(org.postgresql.Driver)",
            "",
        ),
    ];
    assert_eq!(owner_in(java, &stack).0, stack[2].1);
}

#[test]
fn python_with_a_perf_map_owns_by_its_functions() {
    let python = "/usr/local/bin/python3.12";
    let stack = [
        (LIBC, "open64", ""),
        (python, "os_open", ""),
        (python, "_PyEval_EvalFrameDefault", ""),
        ("[jit]", "open", "/usr/local/lib/python3.12/pathlib.py"),
        (python, "_PyEval_EvalFrameDefault", ""),
        (
            "[jit]",
            "get",
            "/srv/shop/venv/lib/python3.12/site-packages/client/api.py",
        ),
        (python, "_PyEval_EvalFrameDefault", ""),
        ("[jit]", "Orders.load", "/srv/shop/orders.py"),
        (python, "_PyEval_EvalFrameDefault", ""),
        ("[jit]", "<module>", "/srv/shop/main.py"),
    ];
    assert_eq!(owner_in(python, &stack), is("Orders.load", "orders.py"));
}

#[test]
fn what_is_linked_into_an_interpreter_is_not_the_services_own() {
    let node = "/usr/bin/node";
    let stack = [
        (node, "sha256_block_data_order", ""),
        (node, "EVP_DigestUpdate", ""),
        (
            node,
            "node::crypto::Hash::HashUpdate(v8::FunctionCallbackInfo)",
            "",
        ),
        ("[jit]", "JS:*digest /srv/shop.js:9:16", ""),
        (node, "node::Start(int, char**)", ""),
    ];
    assert_eq!(owner_in(node, &stack).0, stack[3].1);
    // What Node does of its own accord is still named.
    assert_eq!(
        owner_in(node, &[stack[0], stack[2], stack[4]]),
        is(stack[0].1, "node")
    );
    let python = "/opt/python/bin/python3.12";
    let stack = [
        (python, "binarysort", ""),
        (python, "list_sort_impl", ""),
        (python, "_PyEval_EvalFrameDefault", ""),
        ("[python]", "price", "/srv/shop.py"),
        (python, "Py_BytesMain", ""),
    ];
    assert_eq!(owner_in(python, &stack), is("price", "shop.py"));
    // A program that is only called so is somebody's own.
    let stack = [
        (LIBC, "read", ""),
        (node, "Block::load()", ""),
        (node, "main", ""),
    ];
    assert_eq!(owner_in(node, &stack), is("Block::load()", "node"));
}

#[test]
fn python_code_is_judged_by_its_file_alone() {
    // Names that are the C library's, allocators' or runtimes' elsewhere.
    for function in ["open", "malloc", "PyThing", "main", "runtime.main"] {
        let frames = [
            (LIBC, "open64", ""),
            ("/usr/bin/python3.11", "os_open", ""),
            ("[python]", function, "/srv/shop/orders.py"),
        ];
        assert_eq!(owner(&frames), is(function, "orders.py"));
    }
    for file in [
        "/usr/lib/python3.11/threading.py",
        "/usr/lib/python3/dist-packages/psycopg2/pool.py",
        "/srv/venv/lib/python3.12/site-packages/flask/app.py",
        "<frozen importlib._bootstrap>",
    ] {
        let frames = [
            ("[python]", "get", file),
            ("[python]", "Pool.get", "/srv/pool.py"),
        ];
        assert_eq!(owner(&frames), is("Pool.get", "pool.py"), "{file}");
    }
}

#[test]
fn stubs_of_the_java_virtual_machine_are_its_own() {
    for stub in [
        "monitorenter Runtime1 stub",
        "_complete_monitor_locking_Java",
        "g1_post_barrier_slow",
        "resolve_opt_virtual_call",
        "I2C/C2I adapters",
        "Interpreter",
        "SafepointBlob",
        "NullPointerException at call throw_exception",
    ] {
        let stack = [
            (
                "/opt/jdk/lib/server/libjvm.so",
                "ObjectMonitor::enter(JavaThread*)",
                "",
            ),
            ("[jit]", stub, ""),
            ("[jit]", "double Orders.take(int)", ""),
        ];
        assert_eq!(owner(&stack).0, "double Orders.take(int)", "{stub}");
    }
}
