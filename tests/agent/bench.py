"""One agent on one real process, with made-up readings and captures; time passes as the test says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sentinel_agent import agent as module
from sentinel_agent.agent import RELOAD_SECONDS, Agent
from sentinel_agent.config.load import ConfigInputs, load
from sentinel_agent.config.watch import Reloader
from sentinel_agent.core.event import (
    SettingsRefused,
    SettingsReloaded,
)
from sentinel_agent.probes.registry import Registry
from sentinel_agent.store.limits import stored_limits
from sentinel_agent.store.store import Store
from sentinel_agent.watchlist import WatchRequest
from tests.agent.support import Gauge, HeldClock, Made, captures, settle, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest

    from sentinel_agent.core.event import Event
    from sentinel_agent.core.limits import LimitRecord

SPIKE = "{name: spike, metric: cpu, trigger: {abs: 90}, cooldown: 1m, limit: {count: 2, per: 1h}, capture: [stacks]}"
HELD = "{name: held, metric: rss, trigger: {abs: 90}, hold: 10s, cooldown: 1m, capture: [stacks]}"


def config(*rules: str, extra: str = "") -> str:
    return (
        "rule_packs: []\ntarget: {service: shop, instance: here, children: false}\n"
        f"store: {{min_free_bytes: 0}}\n{extra}\nrules: [{', '.join(rules)}]\n"
    )


class Bench:
    """One agent on one real process, with made-up readings and captures, and everything that it told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = HeldClock()
        self.gauge = Gauge({"cpu": 5.0, "rss": 5.0})
        self.made = Made()
        self.events: list[Event] = []
        self.file = folder / "sentinel.yaml"
        self.data = folder / "data"
        self.stop = asyncio.Event()
        self.listener: Callable[[Event], None] = self.events.append
        self.running_agent: Agent | None = None
        monkeypatch.setattr(module, "load_registry", lambda: Registry({"gauge": self.gauge}))
        monkeypatch.setattr(module, "OPEN_SECONDS", 1e9)  # the live reader has tests of its own
        monkeypatch.setattr(module, "load_captures", lambda **_: captures(self.made))

    def agent(self, pid: int) -> Agent:
        inputs = ConfigInputs(files=(self.file,))
        loaded = load(inputs)
        store = Store(self.data, loaded.settings.store, self.clock).open()
        return Agent(
            WatchRequest((pid,)),
            Reloader(inputs, loaded),
            store,
            self.clock,
            self.listener,
        )

    @asynccontextmanager
    async def running(self, pid: int, text: str | None = None) -> AsyncIterator[Agent]:
        """An agent that has taken its first tick; it is stopped at the end, and its faults are raised."""
        if text is not None:
            self.file.write_text(text)
        self.stop = asyncio.Event()
        agent = self.running_agent = self.agent(pid)
        task = asyncio.create_task(agent.run(self.stop))
        try:
            await until(lambda: task.done() or agent._sampler.statistics().ticks)
            yield agent
        finally:
            self.stop.set()
            await task

    async def reload(self, text: str) -> None:
        """Change the file and wait until the agent has come to a conclusion about it."""
        self.file.write_text(text)
        seen = len(self.told(SettingsReloaded, SettingsRefused))
        for _ in range(2):  # one poll sees the change, the next one that it has settled
            await self.clock.let_pass(RELOAD_SECONDS)
            await self.disk_idle()
        await until(
            lambda: len(self.told(SettingsReloaded, SettingsRefused)) > seen
        )  # exporters: in a thread

    async def disk_idle(self) -> None:
        """Until everything that was handed to the disk is done, and what follows from it."""
        assert self.running_agent is not None
        for _ in range(4):
            await self.running_agent._disk(lambda: None)
            await settle()

    def told(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    async def wait_for(self, kind: type, count: int = 1) -> Any:
        await until(lambda: len(self.told(kind)) >= count)
        return self.told(kind)[-1]

    def stored(self) -> dict[str, LimitRecord]:
        """The limits on disk, by rule."""
        store = Store(self.data, load(ConfigInputs()).settings.store, self.clock)
        return {record.rule: record for record in stored_limits(store)}

    def folders(self) -> list[str]:
        return [path.name for path in (self.data / "incidents").iterdir()]


def raising(error: Exception) -> Any:
    """A function that fails so."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
