"""A service whose functions wait and compute in a module that is written in C, and in what is built in: owners of stacks."""

import json
import os
import sys
import time

import native

NUMBERS = [pow(3, 2000 + number) for number in range(200)]


def load(times, seconds):
    return sum(native.load(seconds) for _ in range(times))


def parse(seconds):
    return native.parse(seconds)


def visit():
    """Called by the module."""
    total = 0
    for number in range(300):
        total += number * number % 7
    return total


def visits(seconds):
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        native.each(visit)
    return time.thread_time() - begin


def price(seconds):
    """What computes is built in: products of large numbers, and a sort."""
    begin = time.thread_time()
    while time.thread_time() - begin < seconds:
        sorted([number * number for number in NUMBERS])
    return time.thread_time() - begin


def step(name, **facts):
    print(json.dumps({"step": name, "pid": os.getpid(), "facts": facts}), flush=True)
    if not os.read(0, 64):
        sys.exit(0)


step("ready")
visits(0.5)
step("warm")
step("computed", parse=parse(0.8), visit=visits(0.8), price=price(0.8))
while True:
    step("waited", load=load(10, 0.1))
