"""An asyncio service that, once it is traced, keeps exactly `sys.argv[1]` MiB, all made in one line.

It says `ready`, then one line of its counters each tenth of a second: requests, and bytes kept.
"""

# It must run on 3.8.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,var-annotated"

import asyncio
import sys
import tracemalloc

BLOCK = 256 * 1024
kept = []
work = []


def remember(size):
    kept.append(bytearray(size))  # line 19: the leak


async def request():
    work[:] = [str(number) for number in range(300)]
    await asyncio.sleep(0.002)


async def main(total):
    requests = 0
    print("ready", flush=True)
    while True:
        await request()
        requests += 1
        if tracemalloc.is_tracing() and len(kept) * BLOCK < total:
            remember(BLOCK)
        if requests % 50 == 0:
            print(requests, len(kept) * BLOCK, flush=True)


if sys.argv[2:] == ["uvloop"]:
    import uvloop

    uvloop.install()
asyncio.run(main(int(sys.argv[1]) * 1024 * 1024))
