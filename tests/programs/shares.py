"""Functions that compute (`cpu`), wait (`waits`), grow and connect (`grows`) or allocate (`allocates`), as much as they say: shares.py KIND."""

import hashlib
import json
import os
import queue
import select
import socket
import sys
import threading
import time

DATA = bytes(1 << 20)
TRUTH = {}
LOCK = threading.Lock()
HELD, TAKEN = threading.Semaphore(0), threading.Semaphore(0)
WORK = queue.Queue()
KEPT = []


def small(seconds):
    begin, total = time.thread_time(), 0
    while time.thread_time() - begin < seconds:
        for number in range(2000):
            total += number * number % 7
    return time.thread_time() - begin


def large(seconds):
    begin, total = time.thread_time(), 0
    while time.thread_time() - begin < seconds:
        total += sum(map(square, range(2000)))
    # What it calls is its own, too: both together.
    return time.thread_time() - begin


def square(number):
    return number * number % 7


def digest(seconds):
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        hashlib.sha256(DATA).digest()
    return time.thread_time() - begin


def nap_short():
    time.sleep(0.1)  # short


def nap_long():
    time.sleep(  # long
        0.3,
    )


def receive(peer):
    for _ in range(10):
        peer.recv(1)  # receive


def answer(peer):
    for _ in range(10):
        time.sleep(0.1)
        peer.send(b"x")


def take():
    for _ in range(10):
        HELD.acquire()
        begin = time.monotonic()
        with LOCK:  # take
            TRUTH["take"] += time.monotonic() - begin
        TAKEN.release()


def hold():
    for _ in range(10):
        with LOCK:
            HELD.release()
            time.sleep(0.1)
        TAKEN.acquire()


def idle():
    begin = time.monotonic()
    while WORK.get() is not None:
        TRUTH["idle"] += time.monotonic() - begin
        begin = time.monotonic()


def timed(name, function, *values):
    begin = time.monotonic()
    function(*values)
    TRUTH[name] = TRUTH.get(name, 0) + time.monotonic() - begin


def computes(name, function, seconds):
    TRUTH[name] = function(seconds)


def together(thread, main):
    """Both end at about the same time: the end of a thread is waited for by means of a lock, too."""
    function, *values = thread
    beside = threading.Thread(target=function, args=values)
    beside.start()
    function, *values = main
    function(*values)
    beside.join()


def naps():
    for _ in range(10):
        timed("nap_short", nap_short)  # shorts
        timed("nap_long", nap_long)  # longs


def connected():
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    return client, listener.accept()[0]


def work():
    for _ in range(10):
        time.sleep(0.1)
        WORK.put(True)
    WORK.put(None)


def cpu():
    together((computes, "large", large, 3), (computes, "small", small, 1))
    computes("digest", digest, 1)


def waits():
    naps()  # the naps
    TRUTH["take"] = TRUTH["idle"] = 0
    together((take,), (hold,))
    # In between, so that no tick of a second has both: one knows of locks only by its samples which of them are waits for work.
    one, other = connected()
    together((timed, "receive", receive, one), (answer, other))
    together((idle,), (work,))


def objects():
    KEPT.append([number for number in range(3_000_000)])


def buffer():
    KEPT.append(bytearray(96 << 20))
    KEPT[-1][::4096] = bytes(len(KEPT[-1]) // 4096)


def resident():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown(function):
    begin = resident()
    function()
    TRUTH[function.__name__] = resident() - begin


def opens(address):
    KEPT.append(socket.create_connection(address))


def grows():
    grown(objects)
    grown(buffer)
    listener = socket.create_server(("127.0.0.1", 0), backlog=300)
    for _ in range(300):
        opens(listener.getsockname())
    TRUTH["opens"] = 300


def slabs():
    for _ in range(100):
        bytes(2 << 20)
    return 100 * sys.getsizeof(bytes(2 << 20))


def cells():
    for _ in range(200_000):
        bytes(1000)
    return 200_000 * sys.getsizeof(bytes(1000))


def allocates():
    TRUTH["slabs"] = slabs()
    TRUTH["cells"] = cells()


def told():
    select.select([0], [], [])
    return os.read(0, 64)


def say(step, **facts):
    print(json.dumps({"step": step, "pid": os.getpid(), "facts": facts}), flush=True)


say("ready")
told()
{"cpu": cpu, "waits": waits, "grows": grows, "allocates": allocates}[sys.argv[1]]()  # the program
say("done", **TRUTH)
told()
sys.exit(0)
