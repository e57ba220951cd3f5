"""Load for CPython: computes, calls the kernel and the C libraries, waits; runs until it is killed."""

import hashlib
import json
import os
import threading
import time
import zlib

DATA = bytes(range(256)) * 64


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def compute():
    fib(14)
    sorted(range(500), key=lambda n: n * 7919 % 503)
    json.loads(json.dumps({str(n): [n, n / 3] for n in range(100)}))


def library():
    zlib.compress(DATA)
    hashlib.sha256(DATA).digest()


def kernel():
    for _ in range(20):
        os.stat("/")
        os.listdir("/")


def wait(lock):
    """The other thread: it sleeps, reads from a pipe and wants the interpreter's lock all the time."""
    out, into = os.pipe()
    while True:
        time.sleep(0.002)
        os.write(into, b"x")
        os.read(out, 1)
        with lock:
            fib(5)


def main():
    lock = threading.Lock()
    threading.Thread(target=wait, args=(lock,), daemon=True).start()
    while True:
        compute()
        library()
        kernel()
        with lock:
            fib(5)


main()
