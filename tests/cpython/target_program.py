"""Run by the interpreters under test (3.8 and later): makes a scene, writes down what is true of it, then holds still.

One JSON line goes to stdout when every thread but the reporter is blocked. The reporter then waits for its stdin to close.
Truth comes from the interpreter itself: `sys._current_frames()`, `asyncio.all_tasks()`, `cr_await` and its kin.
"""

# It must run on 3.8, and its shapes are Python's own objects: types would say nothing.
# mypy: ignore-errors

import asyncio
import contextlib
import ctypes
import functools
import gc
import json
import os
import sys
import threading
import time

GATE = threading.Lock()
GATE.acquire()
LOOPS = []
FOREIGN = []  # tasks that are not of the C type
DEPTH = 500


def hold():
    GATE.acquire()


# Scenes without asyncio ---------------------------------------------------------------------------------------------


def plain():
    def inner(a, b=(1, 2), *c, **d):
        return [hold() for _ in range(3)]

    inner(
        1,
        b=2,
    )


def recursion(depth=DEPTH):
    if depth:
        return recursion(depth - 1)
    return hold()


class Builder:
    def __init__(self):
        self.value = self.prop

    @property
    def prop(self):
        return hold()


def sorted_with_key():
    sorted([3, 1, 2], key=lambda item: functools.reduce(lambda a, b: Builder(), [1, 2]))


def yielding(depth):
    if depth:
        yield from yielding(depth - 1)
    else:
        yield hold()


@contextlib.contextmanager
def manager():
    yield 1
    exec(
        compile("def made():\n\n    return hold()\nmade()", "<made\u00e9 \U0001f600>", "exec"), {"hold": hold}
    )


def generators():
    next(yielding(1))  # a generator that has been left before this scene's own
    sum(value for value in (len(list(yielding(5))) for _ in range(2)))


def unwinding():
    class Last:
        def __del__(self):
            with manager():
                pass

    try:
        keep = Last()
        raise ValueError(keep)
    except ValueError as error:
        error.__traceback__ = None
        del error
        keep = None


def c_extension():
    """C code that calls back: libc's qsort, through ctypes."""
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda one, other: hold())
    ctypes.CDLL(None).qsort(ctypes.create_string_buffer(b"ba"), 2, 1, compare)


def many_threads():
    scenes = [plain, sorted_with_key, unwinding, Builder, functools.partial(recursion, 40)]
    for i in range(20):
        threading.Thread(target=scenes[i % len(scenes)], name=f"worker \u00fc {i}", daemon=True).start()
    plain()


# Scenes with asyncio ------------------------------------------------------------------------------------------------


async def nested(depth, event):
    if depth:
        return await nested(depth - 1, event)
    return await event.wait() if event else hold()


async def agen(event):
    await nested(2, event)
    yield 1


async def through_agen(event):
    async for _ in agen(event):
        pass


class Awaitable:
    def __init__(self, event):
        self.event = event

    def __await__(self):
        return (yield from nested(1, self.event).__await__())


async def through_awaitable(event):
    async with contextlib.AsyncExitStack():
        await Awaitable(event)


async def awaits_task(task):
    await task


async def awaits_many(tasks):
    await asyncio.gather(*tasks)


async def in_group(event):
    async with asyncio.TaskGroup() as group:
        group.create_task(nested(2, event))
        group.create_task(nested(3, event), name="in the group")


async def not_started():
    pass


async def finishes():
    return 1


class OwnTask(asyncio.Task):
    pass


async def nested_running():
    await nested(30, None)


async def make_tasks(count=100, block=True):
    loop = asyncio.get_running_loop()
    LOOPS.append(loop)
    event = asyncio.Event()
    kinds = [functools.partial(nested, 30), through_agen, through_awaitable]
    tasks = [loop.create_task(kinds[i % 3](event)) for i in range(count)]
    tasks.append(asyncio.create_task(awaits_task(tasks[0]), name="named \u00e9\U0001f600"))
    tasks.append(loop.create_task(awaits_many(tasks[1:4])))
    tasks.append(OwnTask(through_agen(event), loop=loop))
    tasks.append(asyncio.tasks._PyTask(through_awaitable(event), loop=loop))
    tasks.append(asyncio.tasks._PyTask(awaits_task(tasks[-1]), loop=loop))
    FOREIGN.extend(tasks[-2:])
    if sys.version_info >= (3, 14):
        # One that the C module was asked to register, as a task of another library's making would be.
        FOREIGN.append(asyncio.tasks._PyTask(through_agen(event), loop=loop))
        asyncio.tasks._py_unregister_task(FOREIGN[-1])
        asyncio.tasks._c_register_task(FOREIGN[-1])
    if hasattr(asyncio, "TaskGroup"):
        tasks.append(loop.create_task(in_group(event)))
    if sys.version_info >= (3, 12):
        tasks.append(asyncio.Task(through_agen(event), loop=loop, eager_start=True))
    done = asyncio.create_task(finishes())
    shielded = asyncio.ensure_future(asyncio.shield(tasks[5]))
    await asyncio.sleep(0.01)
    tasks += [done, shielded, asyncio.create_task(not_started())]
    if block:
        # In a callback of the loop, with no task running.
        loop.call_soon(hold)
        await event.wait()
    else:
        await nested(3, None)


def run_loop(block=True):
    asyncio.run(make_tasks(block=block))


async def make_many(count=10_000):
    loop = asyncio.get_running_loop()
    LOOPS.append(loop)
    event = asyncio.Event()
    kept = [loop.create_task(nested(i % 3, event)) for i in range(count)]
    await asyncio.sleep(0.01)
    loop.call_soon(hold)
    await asyncio.wait(kept)


def on_uvloop():
    import uvloop  # noqa: PLC0415 - in that scene's interpreters only

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(make_tasks())


def several_loops():
    for _ in range(3):
        threading.Thread(target=run_loop, daemon=True).start()
    run_loop()


SCENES = {
    "plain": plain,
    "recursion": recursion,
    "sorted_with_key": sorted_with_key,
    "generators": generators,
    "unwinding": unwinding,
    "c_extension": c_extension,
    "threads": many_threads,
    "nested": lambda: asyncio.run(nested_running()),
    "tasks": run_loop,
    "running_task": lambda: run_loop(block=False),
    "loops": several_loops,
    "uvloop": on_uvloop,
    "many_tasks": lambda: asyncio.run(make_many()),
}
QUIET_THREADS = {"threads": 21, "loops": 4}


# The truth ----------------------------------------------------------------------------------------------------------


def place(frame):
    code = frame.f_code
    return [getattr(code, "co_qualname", code.co_name), code.co_filename, frame.f_lineno]


def stack(frame):
    frames = []
    while frame is not None:
        frames.append(place(frame))
        frame = frame.f_back
    return frames


def inside(awaited):
    """The generator or coroutine inside an object of C that hides it."""
    return next(
        (o for o in gc.get_referents(awaited) if hasattr(o, "cr_frame") or hasattr(o, "ag_frame")), None
    )


def running(frame, current):
    """The frames from one that executes to the innermost of its thread; none if no thread executes it."""
    for leaf in current.values():
        found = []
        caller = leaf
        while caller is not None:
            found.append(place(caller))
            if caller is frame:
                return found[::-1]
            caller = caller.f_back
    return []


def await_chain(awaited, current):
    """Frames from the task's coroutine on; for one that runs, on to the innermost frame of its thread."""
    frames = []
    while awaited is not None:
        for prefix in ("cr", "gi", "ag"):
            if hasattr(awaited, prefix + "_frame"):
                frame = getattr(awaited, prefix + "_frame")
                if frame is None:
                    return frames
                # An asynchronous generator says that it runs while it waits, too.
                executed = running(frame, current) if getattr(awaited, prefix + "_running") else []
                if executed:
                    return frames + executed
                frames.append(place(frame))
                awaited = getattr(awaited, prefix + "_await", None) or getattr(
                    awaited, prefix + "_yieldfrom", None
                )
                break
        else:
            awaited = inside(awaited)
    return frames


def waiting_on(task):
    future = task._fut_waiter
    if future is None:
        return None
    if isinstance(future, (asyncio.Task, asyncio.tasks._PyTask)):
        return f"Task {future.get_name()!r}"
    return type(future).__name__


def awaiters(known):
    """By task, who waits for it: what CPython keeps of it from 3.14 on, and what the tasks that wait tell of themselves."""
    found = {task: set(getattr(task, "_asyncio_awaited_by", None) or ()) for task in known}
    for task in known:
        future = task._fut_waiter
        for child in (future, *getattr(future, "_children", ())):
            if child in known:
                found[child].add(task)
        if sys.version_info < (3, 14):
            for callback, _ in task._callbacks or ():
                parent = getattr(getattr(callback, "__self__", None), "_parent_task", None)
                found[task] |= {parent} if parent else set()
    return {task: sorted(other.get_name() for other in who & known) for task, who in found.items()}


def tasks(current):
    found = []
    for loop in LOOPS:
        # From 3.14 on this is the C module's function, which does not see the tasks that are Python's own.
        known = asyncio.all_tasks(loop) | getattr(asyncio.tasks, "_py_all_tasks", asyncio.all_tasks)(loop)
        who = awaiters(known)
        for task in known:
            coroutine = task.get_coro()
            found.append(
                [
                    task.get_name(),
                    coroutine.__qualname__,
                    await_chain(coroutine, current),
                    waiting_on(task),
                    who[task],
                ]
            )
    return found


def truth():
    own = threading.get_ident()
    current = {ident: frame for ident, frame in sys._current_frames().items() if ident != own}
    stacks = {str(ident): stack(frame) for ident, frame in current.items()}
    threads = {str(t.ident): [t.name, t.native_id] for t in threading.enumerate()}
    return {
        "version": list(sys.version_info[:3]),
        "stacks": stacks,
        "threads": threads,
        "tasks": tasks(current),
        "foreign": len(FOREIGN),
    }


def report(expected):
    last = None
    while True:
        found = truth()
        held = [frames for frames in found["stacks"].values() if frames[0][0] == "hold"]
        if len(held) == expected == len(found["stacks"]) and found == last:
            break
        last = found
        time.sleep(0.02)
    os.write(1, json.dumps(found).encode() + b"\n")
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    name = sys.argv[1]
    sys.setrecursionlimit(5000)
    threading.Thread(target=report, args=(QUIET_THREADS.get(name, 1),), daemon=True).start()
    SCENES[name]()
