"""Ten requests a second; each keeps one descriptor for ever, and opens and closes some: see leak.c."""

import json
import os
import select
import sys
import time

KEPT = []
BORROWED = []


def leak_one():
    KEPT.append(os.open("/dev/null", os.O_RDONLY))


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
        leak_one()
        open_and_close()
        borrow_one()
        request += 1
        if told(max(begin + request * 0.1 - time.monotonic(), 0)):
            return begin


say("ready")
told()
begin = serve()
while BORROWED:
    os.close(BORROWED.pop())
say("stopped", leaked=len(KEPT), seconds=time.monotonic() - begin)
told()
sys.exit(0)
