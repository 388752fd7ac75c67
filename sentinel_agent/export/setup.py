"""From the settings to a hub, at the start and whenever they change."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from sentinel_agent import __version__
from sentinel_agent.export.base import ExporterContext
from sentinel_agent.export.hub import Hub
from sentinel_agent.export.registry import installed, make

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sentinel_agent.clock import Clock
    from sentinel_agent.export.base import ExporterFactory, ExporterOptions


def make_hub(
    settings: Mapping[str, ExporterOptions],
    data_dir: Path,
    clock: Clock,
    kinds: Mapping[str, ExporterFactory] | None = None,
) -> Hub:
    """The hub of the settings."""
    hub = Hub((), data_dir / "export", clock)
    set_up(hub, settings, clock, kinds)
    return hub


def set_up(
    hub: Hub,
    settings: Mapping[str, ExporterOptions],
    clock: Clock,
    kinds: Mapping[str, ExporterFactory] | None = None,
) -> None:
    """Put settings in force. The exporter `prometheus` is there even if they do not name it: `/metrics` needs it."""
    known = installed() if kinds is None else kinds
    host = socket.gethostname()
    wanted = dict(settings)
    if "prometheus" in known and not any(
        (options.kind or name) == "prometheus" for name, options in wanted.items()
    ):
        name = "prometheus" if "prometheus" not in wanted else "/metrics"
        wanted[name] = known["prometheus"].Options(kind="prometheus")
    hub.replace(
        wanted,
        lambda name, options: make(name, options, ExporterContext(name, clock, __version__, host), known),
    )
