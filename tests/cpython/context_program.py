"""Tasks with request contexts; `sys.argv[1]` is the file of `sentinel_agent.request_context`, `sys.argv[2]` how many other variables are set.

It says `ready` once all of them wait. It must run on 3.8.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,arg-type"

import asyncio
import contextvars
import importlib.util
import sys

spec = importlib.util.spec_from_file_location("sentinel_agent.request_context", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module  # type: ignore[union-attr]  # as above
spec.loader.exec_module(module)  # type: ignore[union-attr]  # as above
for number in range(int(sys.argv[2])):
    contextvars.ContextVar("other-%d" % number).set("something else")  # noqa: UP031 - 3.8 and all later ones alike


async def child():
    await asyncio.sleep(600)


async def handler(number):
    with module.context(route="/pay", trace_id=number):
        task = asyncio.ensure_future(child())
        with module.context(step="ç€", route="/pay/card"):
            await asyncio.sleep(600)
    await task


async def main():
    tasks = [asyncio.ensure_future(handler(number)) for number in range(20)]
    bare = asyncio.ensure_future(child())
    await asyncio.sleep(0.05)
    print("ready", flush=True)
    await asyncio.gather(bare, *tasks)


asyncio.run(main())
