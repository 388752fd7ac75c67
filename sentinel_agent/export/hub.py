"""All exporters together: the agent offers items, a thread of their own carries them away.

The thread has its own event loop, so no connection, answer or encoding is ever on the loop that ticks. Offering is an
append to a deque per exporter that wants the signal. At the end the lines get a deadline together; what is then not
delivered is on disk for the next start, or counted. `replace` only says what shall be: the thread sees to it that entries
that are no longer wanted end, and those that are new begin, and that of one name never two are at work.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.export.base import ExportedEvent, LineStatus, SendError
from sentinel_agent.export.line import Line
from sentinel_agent.export.registry import Made, as_exporter, as_view
from sentinel_agent.export.slot import spool_slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from sentinel_agent.clock import Clock
    from sentinel_agent.core.event import Event
    from sentinel_agent.export.base import (
        Exporter,
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
RETIRE_SECONDS = 1.0
"""How long an exporter whose settings have changed may deliver what it still holds, before its spool is handed over."""
_FAULTS_SAID = 100
_LAST_WORDS = 0.5
"""After the deadline: time for cancelled requests to end and for the disk."""


@dataclass(frozen=True, eq=False, slots=True)
class _Entry:
    """One entry of the settings: an exporter with its lines, a view, or neither where it could not be made."""

    made: Made
    exporter: Exporter | None
    view: View | None
    lines: tuple[Line, ...]


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
        self._chance = chance
        self._folder = folder
        self._life = threading.Lock()  # of the thread: settings may change while the agent stops
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = False
        self._stop = asyncio.Event()
        self._replaced = asyncio.Event()
        self._deadline = STOP_SECONDS
        self._said: set[str] = set()
        self._use({made.name: self._entry(made) for made in entries})

    def _entry(self, made: Made) -> _Entry:
        view, exporter = as_view(made), as_exporter(made)
        if view is None and exporter is None:
            log.error("exporter %s is not used: %s", made.name, made.fault)
        lines = []
        if exporter is not None:
            lines = [
                Line(made.name, signal, exporter, made.options, clock=self._clock, chance=self._chance)
                for signal in made.signals
            ]
        return _Entry(made, exporter, view, tuple(lines))

    def _use(self, entries: dict[str, _Entry]) -> None:
        """Offer to these from now on."""
        lines: dict[Signal, list[Line]] = {}
        views: dict[Signal, list[View]] = {}
        for entry in entries.values():
            for line in entry.lines:
                lines.setdefault(line.signal, []).append(line)
            for signal in entry.made.signals if entry.view is not None else ():
                assert entry.view is not None
                views.setdefault(signal, []).append(entry.view)
        self._entries, self._lines, self._views = entries, lines, views

    def replace(
        self, wanted: Mapping[str, ExporterOptions], made: Callable[[str, ExporterOptions], Made]
    ) -> None:
        """Put other settings in force. What has not changed goes on as it is; `made` makes the rest, which may take long.

        On any thread, one at a time.
        """
        known = self._entries
        found = {}
        for name, options in wanted.items():
            old = known.get(name)
            same = old is not None and not old.made.fault and old.made.options == options
            found[name] = old if old is not None and same else self._entry(made(name, options))
        self._use(found)
        with self._life:
            if self._thread is not None:
                self._call(self._replaced.set)
            elif self._running:
                self._begin()

    @property
    def lines(self) -> tuple[Line, ...]:
        """Every line."""
        return tuple(line for entry in self._entries.values() for line in entry.lines)

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
        view = next((entry.view for entry in self._entries.values() if entry.view is not None), None)
        return view.render if view is not None else None

    def statistics(self) -> tuple[LineStatus, ...]:
        """Every line as it is now, and the entries that could not be used."""
        return (
            *(line.status() for line in self.lines),
            *(
                LineStatus(made.name, made.kind, "", "refused", 0, 0, 0, 0, 0, {}, (), last_error=made.fault)
                for made in (entry.made for entry in self._entries.values())
                if made.exporter is None
            ),
        )

    # -- the thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver. Without exporters that send there is no thread."""
        with self._life:
            self._running = True
            self._begin()

    def _begin(self) -> None:
        if self._lines and self._thread is None:
            self._thread = threading.Thread(target=self._main, name="sentinel-export", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """`stop`, from a loop that goes on meanwhile."""
        await asyncio.to_thread(self.stop)

    def stop(self, deadline: float = STOP_SECONDS) -> None:
        """Deliver what is left, for at most `deadline` seconds, then end. Blocks; a second call does nothing.

        A disk that hangs cannot hold it longer than half a second more: the thread is then left to its fate.
        """
        with self._life:
            self._running = False
            thread, self._thread = self._thread, None
        if thread is None:
            return
        self._deadline = deadline
        self._call(self._stop.set)
        thread.join(deadline + _LAST_WORDS * 2)
        if thread.is_alive():
            log.error("exporters did not end within %.1f s; what they still held is lost", deadline + 1)

    def _call(self, what: Callable[[], object]) -> None:
        """Have the thread do something; it looks by itself when it begins."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(what)
            except RuntimeError:  # its loop has ended by a fault of its own
                log.debug("the exporters' loop had ended")

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
        with spool_slot(self._folder) as folder:
            working = await self._work(folder)
            await _end([task for tasks in working.values() for task in tasks], _LAST_WORDS / 2)
            lines = [line for entry in working for line in entry.lines]
            await _drained(lines, self._deadline)
        await asyncio.gather(*(_closed(entry) for entry in working))

    async def _work(self, folder: Path | None) -> dict[_Entry, list[asyncio.Future[None]]]:
        """Keep at work what shall be, until the stop; what then is, with its tasks."""
        working: dict[_Entry, list[asyncio.Future[None]]] = {}
        stop = asyncio.ensure_future(self._stop.wait())
        while True:
            self._replaced.clear()
            wanted = {entry for entry in self._entries.values() if entry.exporter is not None}
            old = {entry: working.pop(entry) for entry in tuple(working) if entry not in wanted}
            await asyncio.gather(*(_retired(entry, tasks, stop) for entry, tasks in old.items()))
            for entry in wanted - working.keys():
                for line in entry.lines:
                    line.use_disk(folder)
                working[entry] = [asyncio.ensure_future(self._guarded(line)) for line in entry.lines]
            if stop.done():
                return working
            replaced = asyncio.ensure_future(self._replaced.wait())
            await asyncio.wait([stop, replaced], return_when=asyncio.FIRST_COMPLETED)
            replaced.cancel()

    async def _guarded(self, line: Line) -> None:
        """A fault of our own in one line must end neither the others nor the thread."""
        while True:
            try:
                await line.run()
            except Exception:
                log.exception("exporter %s: internal fault, please report it", line.name)
                await self._clock.sleep(1.0)


async def _closed(entry: _Entry) -> None:
    try:
        async with asyncio.timeout(_LAST_WORDS / 2):
            if entry.exporter is not None:
                await entry.exporter.close()
    except Exception as error:  # noqa: BLE001 - a stranger's exporter; the others must be closed too
        log.debug("exporter %s did not close: %r", entry.made.name, error)


async def _drained(lines: Sequence[Line], seconds: float, *until: asyncio.Future[Any]) -> None:
    """Deliver what is left for so long, or until something else is done; the rest goes to disk."""

    async def all_of_them() -> None:
        await asyncio.gather(*(line.drain() for line in lines), return_exceptions=True)

    drained = asyncio.create_task(all_of_them())
    await asyncio.wait([drained, *until], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    await _end([drained], _LAST_WORDS / 2)
    for line in lines:
        line.shelve()


async def _retired(entry: _Entry, tasks: Sequence[asyncio.Future[None]], stop: asyncio.Future[Any]) -> None:
    """End what is no longer wanted; its successor finds on disk what could not be delivered."""
    await _end(tasks, _LAST_WORDS / 2)
    await _drained(entry.lines, RETIRE_SECONDS, stop)
    await _closed(entry)
    for line in entry.lines:
        status = line.status()
        if status.waiting or status.lost:
            log.info(
                "exporter %s: its settings have changed; %d %s wait on disk, lost since the start: %s",
                line.name,
                status.waiting,
                line.signal,
                status.lost or "nothing",
            )


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


async def _end(tasks: Sequence[asyncio.Future[Any]], seconds: float) -> None:
    """Cancel what still runs and give it a moment."""
    late = [task for task in tasks if not task.done()]
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=seconds)


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
