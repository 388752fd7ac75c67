"""A target that blocks its event loop, keeps it busy, idles or collects garbage as it is told, and answers with its own clock.

A line on stdin is a word and seconds; the answer is a JSON list of [start, end] on CLOCK_MONOTONIC: of the callback, of the longest
callback, or of the collection.
"""

# It must run on 3.8: no annotations.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,var-annotated"

import asyncio
import gc
import json
import sys
import time

now = time.monotonic  # noqa: TID251 - its own truth


def work(seconds):
    end = now() + seconds
    while now() < end:
        sum(range(100))


def timed(function, *arguments):
    start = now()
    function(*arguments)
    return [start, now()]


async def one_coroutine(seconds):
    """Busy all the time, and back in the loop every millisecond, always at the same line."""
    longest, end = [0, 0], now() + seconds
    while now() < end:
        span = timed(work, 0.001)
        longest = max(longest, span, key=lambda one: one[1] - one[0])
        await asyncio.sleep(0)
    return longest


async def many_callbacks(seconds):
    """Busy all the time with calls of one function, ten in each round."""
    loop, spans, end = asyncio.get_running_loop(), [[0, 0]], now() + seconds
    done = loop.create_future()
    left = 10

    def callback():
        nonlocal left
        spans.append(timed(work, 0.001))
        if now() < end:
            loop.call_soon(callback)
            return
        left -= 1
        if not left:
            done.set_result(None)

    for _ in range(10):
        loop.call_soon(callback)
    await done
    return max(spans, key=lambda one: one[1] - one[0])


def in_a_callback(function, seconds):
    """A future of when it began and ended, in a callback that does nothing else."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(lambda: done.set_result(timed(function, seconds)))
    return done


class Slow:
    def __init__(self, seconds):
        self.me = self
        self.seconds = seconds

    def __del__(self):
        time.sleep(self.seconds)


def collect(seconds):
    gc.collect()
    Slow(seconds)
    gc.collect()


async def main():
    loop = asyncio.get_running_loop()
    print("{}", flush=True)
    while True:
        line = await loop.run_in_executor(None, sys.stdin.readline)
        word, _, figure = line.strip().partition(" ")
        if word == "block":
            answer = await in_a_callback(time.sleep, float(figure))
        elif word == "burn":
            answer = await in_a_callback(work, float(figure))
        elif word == "one":
            answer = await one_coroutine(float(figure))
        elif word == "many":
            answer = await many_callbacks(float(figure))
        elif word == "collect":
            answer = timed(collect, float(figure))
        elif word == "stats":
            gc.collect()
            gc.disable()
            answer = gc.get_stats()
        else:
            await asyncio.sleep(float(figure or 0))
            answer = [0, 0]
        print(json.dumps(answer), flush=True)


asyncio.run(main())
