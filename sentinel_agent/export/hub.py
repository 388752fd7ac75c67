"""All exporters together: the agent offers items, a thread of their own carries them away.

The thread has its own event loop, so no connection, answer or encoding is ever on the loop that ticks. Offering is an
append to a deque per exporter that wants the signal. At the end the lines get a deadline together; what is then not
delivered is on disk for the next start, or counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sentinel_agent import __version__
from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.export.base import ExportedEvent, ExporterContext, LineStatus, SendError
from sentinel_agent.export.line import Line
from sentinel_agent.export.registry import Made, as_exporter, as_view, installed, make

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sentinel_agent.clock import Clock
    from sentinel_agent.core.event import Event
    from sentinel_agent.export.base import (
        Exporter,
        ExporterFactory,
        ExporterOptions,
        Item,
        Signal,
        View,
    )

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

STOP_SECONDS = 2.0
"""How long a stop waits for what is still to be delivered."""
_SLOTS = 8
"""Agents that may share a data directory and spool."""
_FAULTS_SAID = 100
_LAST_WORDS = 0.5
"""After the deadline: time for cancelled requests to end and for the disk."""


class Hub:
    """Lines for exporters that send, and the views that are asked."""

    def __init__(
        self,
        entries: Iterable[Made],
        folder: Path | None,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take what `registry.make` made. Spools are below `folder`; None: nothing goes to disk."""
        self._clock = clock
        self._lines: dict[Signal, list[Line]] = {}
        self._views: dict[Signal, list[View]] = {}
        self._exporters: list[tuple[str, Exporter]] = []
        self._faulty: list[Made] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._deadline = STOP_SECONDS
        self._folder = folder
        self._view: View | None = None
        self._said: set[str] = set()
        for made in entries:
            self._take_up(made, chance)

    def _take_up(self, made: Made, chance: Callable[[], float]) -> None:
        if (view := as_view(made)) is not None:
            self._view = self._view or view
            for signal in made.signals:
                self._views.setdefault(signal, []).append(view)
            return
        exporter = as_exporter(made)
        if exporter is None:
            self._faulty.append(made)
            log.error("exporter %s is not used: %s", made.name, made.fault)
            return
        self._exporters.append((made.name, exporter))
        for signal in made.signals:
            line = Line(made.name, signal, exporter, made.options, clock=self._clock, chance=chance)
            self._lines.setdefault(signal, []).append(line)

    @property
    def lines(self) -> tuple[Line, ...]:
        """Every line."""
        return tuple(line for lines in self._lines.values() for line in lines)

    def wants(self, signal: Signal) -> bool:
        """Whether offering such items is worth making them."""
        return signal in self._lines or signal in self._views

    def offer(self, signal: Signal, item: Item) -> None:
        """Hand an item to everyone who wants the signal. Microseconds, never waits, never raises; any thread.

        A group of no spans is nothing.
        """
        for line in self._lines.get(signal, ()):
            line.offer(item)
        for view in self._views.get(signal, ()):
            try:
                view.observe(item)
            except Exception as error:  # noqa: BLE001 - a stranger's view; the agent's tick must go on
                self._blame(view, error)

    def _blame(self, view: View, error: Exception) -> None:
        what = f"{type(view).__name__}: {type(error).__name__}: {error}"[:300]
        if what not in self._said and len(self._said) < _FAULTS_SAID:
            self._said.add(what)
            log.error("a view could not take an item: %s", what)

    def tell(self, event: Event) -> None:
        """Hand on an event of the agent, if it is one that leaves the house; a sealed incident brings its artifacts."""
        if isinstance(event, ExportedEvent):
            self.offer("events", event)
        if isinstance(event, IncidentSealed):
            self.offer("artifacts", event)

    @property
    def metrics_text(self) -> Callable[[str | None], tuple[str, bytes]] | None:
        """What `GET /metrics` answers: the Accept header -> (content type, document); None without such an exporter.

        It takes milliseconds: call it in a thread.
        """
        return self._view.render if self._view is not None else None

    def statistics(self) -> tuple[LineStatus, ...]:
        """Every line as it is now, and the entries that could not be used."""
        return (
            *(line.status() for line in self.lines),
            *(
                LineStatus(made.name, made.kind, "", "refused", 0, 0, 0, 0, 0, {}, (), last_error=made.fault)
                for made in self._faulty
            ),
        )

    # -- the thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver. Without exporters that send there is no thread."""
        if self._lines and self._thread is None:
            self._thread = threading.Thread(target=self._main, name="sentinel-export", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """`stop`, from a loop that goes on meanwhile."""
        if self._thread is not None:
            await asyncio.to_thread(self.stop)

    def stop(self, deadline: float = STOP_SECONDS) -> None:
        """Deliver what is left, for at most `deadline` seconds, then end. Blocks; a second call does nothing.

        A disk that hangs cannot hold it longer than half a second more: the thread is then left to its fate.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._deadline = deadline
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._stop.set)
            except RuntimeError:  # its loop has ended by a fault of its own
                log.debug("the exporters' loop had ended")
        thread.join(deadline + _LAST_WORDS * 2)
        if thread.is_alive():
            log.error("exporters did not end within %.1f s; what they still held is lost", deadline + 1)

    def _main(self) -> None:
        try:
            asyncio.run(self._deliver())
        except Exception:
            log.exception("nothing is exported any more, internal fault, please report it")

    async def _deliver(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(_Threads())
        if self._thread is None:  # stopped before it began
            self._stop.set()
        with _slot(self._folder) as folder:
            for line in self.lines:
                line.use_disk(folder)
            running = [asyncio.ensure_future(self._guarded(line)) for line in self.lines]
            await self._stop.wait()
            await _end(running, _LAST_WORDS / 2)
            drains = [asyncio.ensure_future(line.drain()) for line in self.lines]
            await asyncio.wait(drains, timeout=self._deadline)
            await _end(drains, _LAST_WORDS / 2)
            for line in self.lines:
                line.shelve()
        await asyncio.gather(*(_closed(name, exporter) for name, exporter in self._exporters))

    async def _guarded(self, line: Line) -> None:
        """A fault of our own in one line must end neither the others nor the thread."""
        while True:
            try:
                await line.run()
            except Exception:
                log.exception("exporter %s: internal fault, please report it", line.name)
                await self._clock.sleep(1.0)


async def _closed(name: str, exporter: Exporter) -> None:
    try:
        async with asyncio.timeout(_LAST_WORDS / 2):
            await exporter.close()
    except Exception as error:  # noqa: BLE001 - a stranger's exporter; the others must be closed too
        log.debug("exporter %s did not close: %r", name, error)


class _Threads(ThreadPoolExecutor):
    """A thread for each call, for which nobody waits: a name server that hangs holds no stop and no end of the process."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        future: Future[_T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it is raised where the future is awaited
                future.set_exception(error)

        threading.Thread(target=work, name="sentinel-export-call", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing to wait for."""


async def _end(tasks: Sequence[asyncio.Future[None]], seconds: float) -> None:
    """Cancel what still runs and give it a moment."""
    late = [task for task in tasks if not task.done()]
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=seconds)


@contextlib.contextmanager
def _slot(folder: Path | None) -> Iterator[Path | None]:
    """A folder below `folder` that no other agent uses, with what agents that have ended left in theirs.

    None where there is none to be had; the reason is logged.
    """
    own: tuple[Path, int] | None = None
    if folder is not None:
        try:
            for number in range(_SLOTS):
                place = folder / str(number)
                if own is not None and not place.exists():
                    continue
                held = _held(place)
                if held is None:
                    continue
                if own is None:
                    own = (place, held)
                else:
                    try:
                        _adopt(own[0], place)
                    finally:
                        os.close(held)
        except OSError as error:
            log.warning("what waits for a backend may not be on disk: %s", error)
    try:
        yield own[0] if own is not None else None
    finally:
        if own is not None:
            os.close(own[1])


def _held(place: Path) -> int | None:
    """A descriptor that locks the folder, which is made if need be; None if another process holds it."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _adopt(own: Path, left: Path) -> None:
    """Move the batches of an agent that has ended to our folder."""
    for path in left.glob("*/*/*.batch"):
        place = own / path.parent.relative_to(left)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.rename(place / path.name)


def make_hub(
    settings: Mapping[str, ExporterOptions],
    data_dir: Path,
    clock: Clock,
    kinds: Mapping[str, ExporterFactory] | None = None,
) -> Hub:
    """The hub of the settings. The exporter `prometheus` is there even if they do not name it: `/metrics` needs it."""
    known = installed() if kinds is None else kinds
    host = socket.gethostname()
    entries = [
        make(name, options, ExporterContext(name, clock, __version__, host), known)
        for name, options in settings.items()
    ]
    if "prometheus" in known and not any(made.kind == "prometheus" for made in entries):
        context = ExporterContext("prometheus", clock, __version__, host)
        entries.append(make("prometheus", known["prometheus"].Options(), context, known))
    return Hub(entries, data_dir / "export", clock)


async def try_out(exporter: Exporter, signal: Signal, item: Item, seconds: float) -> tuple[bool, str]:
    """Send one item at once and say what the backend answered: (taken, words)."""
    try:
        body = exporter.encode(signal, [item])
        if body is None:
            return True, "nothing of this signal is sent to this backend"
        async with asyncio.timeout(seconds):
            return True, await exporter.send(signal, body)
    except SendError as error:
        return False, f"{error.blame}: {error.message}"
    except TimeoutError:
        return False, f"no answer within {seconds:g} s"
    except Exception as error:  # noqa: BLE001 - what a stranger's exporter raises is the answer
        return False, f"{type(error).__name__}: {error}"
