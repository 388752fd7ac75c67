"""A target that never stands still. Which function calls which, from which line, it learns first (`sys.setprofile`) and writes down.

busy_program.py sync|threads|asyncio SECONDS
"""

# It must run on 3.8, and is measured: no annotations.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,var-annotated"

import asyncio
import json
import os
import sys
import threading
import time

EDGES = set()


def place(frame):
    code = frame.f_code
    return getattr(code, "co_qualname", code.co_name) + " " + code.co_filename


def note(frame, event, argument):
    if event == "call" and frame.f_back is not None:
        EDGES.add((place(frame.f_back), frame.f_back.f_lineno, place(frame)))


def leaf(n):
    total = 0
    for i in range(n):
        total += i
    return total


def generate(n):
    for i in range(n):
        yield leaf(i)


def delegate(n):
    yield from generate(n)


class Thing:
    def __init__(self, n):
        self.n = leaf(n)

    def __lt__(self, other):
        return leaf(3) < 0 or self.n < other.n


def recurse(n):
    return leaf(n) if n == 0 else recurse(n - 1) + 1


def sorting():
    return sorted([Thing(i % 5) for i in range(8)], key=lambda thing: Thing(thing.n))


def small():
    return [recurse(3), sum(delegate(5)), recurse(20)]


def step(number):
    (sorting, small, lambda: recurse(12), lambda: list(delegate(3)))[number % 4]()


def busy(until):
    number = 0
    while time.perf_counter() < until:
        step(number)
        number += 1


async def inner(depth):
    if depth:
        return await inner(depth - 1)
    await asyncio.sleep(0)
    return leaf(20)


async def items(n):
    for _ in range(n):
        yield await inner(1)


async def worker(until, number):
    while time.perf_counter() < until:
        await inner(number % 7)
        async for _ in items(2):
            small()
        step(number)


async def serve(until, workers):
    await asyncio.gather(*[worker(until, number) for number in range(workers)])


def main(kind, seconds):
    warm_up = time.perf_counter() + 0.7
    sys.setprofile(note)
    threading.setprofile(note)
    if kind == "asyncio":
        asyncio.run(serve(warm_up, 8))
    else:
        busy(warm_up)
    if kind == "threads":
        thread = threading.Thread(target=busy, args=(time.perf_counter() + 0.2,))
        thread.start()
        thread.join()
    sys.setprofile(None)
    threading.setprofile(None)
    until = time.perf_counter() + seconds
    if kind == "threads":
        for _ in range(3):
            threading.Thread(target=busy, args=(until,), daemon=True).start()
        time.sleep(0.1)
    os.write(1, json.dumps({"edges": sorted(EDGES)}).encode() + b"\n")
    if kind == "asyncio":
        asyncio.run(serve(until, 8))
    else:
        busy(until)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
