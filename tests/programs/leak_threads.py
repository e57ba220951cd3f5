"""Ten requests a second, which another thread than the main one handles; each keeps one descriptor for ever.

Meanwhile the main thread opens and closes some: see leak.py. Between `handle` and `Store.load` is C code.
"""

import json
import os
import queue
import select
import sys
import threading
import time

BORROWED = []
REQUESTS = queue.SimpleQueue()


class Store:
    def __init__(self):
        self.kept = []

    def load(self, path):
        self.kept.append(
            os.open(path, os.O_RDONLY)  # the leak
        )
        with open("/dev/zero", "rb"):
            pass


STORE = Store()


def handle(paths):
    for _ in map(STORE.load, paths):  # the call
        pass


def worker():
    while REQUESTS.get():
        handle(["/dev/null"])  # the thread


def open_and_close():
    for _ in range(20):
        with open("/dev/zero", "rb"):
            pass


def borrow_one():
    BORROWED.append(os.dup(0))
    if len(BORROWED) > 3:
        os.close(BORROWED.pop(0))


def told(seconds=None):
    ready, _, _ = select.select([0], [], [], seconds)
    return bool(ready) and bool(os.read(0, 64))


def say(step, **facts):
    print(json.dumps({"step": step, "pid": os.getpid(), "facts": facts}), flush=True)


def serve():
    begin = time.monotonic()
    request = 0
    while True:
        REQUESTS.put(True)
        open_and_close()
        borrow_one()
        request += 1
        if told(max(begin + request * 0.1 - time.monotonic(), 0)):
            return begin


thread = threading.Thread(target=worker)
thread.start()
say("ready")
told()
begin = serve()
REQUESTS.put(False)
thread.join()
while BORROWED:
    os.close(BORROWED.pop())
say("stopped", leaked=len(STORE.kept), seconds=time.monotonic() - begin)
told()
sys.exit(0)
