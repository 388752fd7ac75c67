"""Finds exporters by entry point and makes those that the settings name; one that cannot be made stops no other."""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args, get_origin

import msgspec

from sentinel_agent.errors import OperatorError, SentinelError
from sentinel_agent.export.base import ExporterOptions, Secret, Signal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentinel_agent.export.base import Exporter, ExporterContext, ExporterFactory, View

GROUP = "sentinel_agent.exporters"
_MAX_SECRET = 65536


@cache
def installed() -> Mapping[str, ExporterFactory]:
    """The exporters that are installed, by kind. One whose module cannot be imported is left out."""
    found: dict[str, ExporterFactory] = {}
    for plugin in entry_points(group=GROUP):
        try:
            found[plugin.name] = plugin.load()
        except Exception:  # noqa: BLE001, S112 - a stranger's module may raise anything; naming its kind is then a fault
            continue
    return found


class Made(NamedTuple):
    """One entry of the settings: its exporter, or why there is none. `signals` are those that it shall get."""

    name: str
    kind: str
    options: ExporterOptions
    exporter: Exporter | View | None
    signals: tuple[Signal, ...]
    fault: str = ""


def make(
    name: str, options: ExporterOptions, context: ExporterContext, kinds: Mapping[str, ExporterFactory]
) -> Made:
    """The exporter of one entry. Never raises."""
    kind = options.kind or name
    factory = kinds.get(kind)
    if factory is None:
        return Made(name, kind, options, None, (), f"no exporter of the kind {kind!r} is installed")
    wanted = options.signals if options.signals is not None else factory.signals
    signals = tuple(signal for signal in factory.signals if signal in wanted)
    try:
        exporter = factory(revealed(options), context)
    except SentinelError as error:
        why = error.message + (f"; {error.hint}" if error.hint else "")
        return Made(name, kind, options, None, signals, why)
    except Exception as error:  # noqa: BLE001 - a stranger's exporter may raise anything
        return Made(name, kind, options, None, signals, f"{type(error).__name__}: {error}"[:300])
    return Made(name, kind, options, exporter, signals)


def revealed(options: ExporterOptions, environment: Mapping[str, str] = os.environ) -> ExporterOptions:
    """The options with each secret read from where it says it is.

    Raises:
        OperatorError: it is not there.
    """
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, str) and is_secret_hint(field.type):
            changes[field.name] = _reveal(value, field.name, environment)
        elif isinstance(value, dict) and is_secret_hint(field.type):
            changes[field.name] = {
                key: _reveal(item, f"{field.name}.{key}", environment) for key, item in value.items()
            }
    return msgspec.structs.replace(options, **changes)


def is_secret_hint(hint: Any) -> bool:
    """Whether a type, or what a mapping or union of it holds, is a `Secret`."""
    return hint == Secret or any(
        is_secret_hint(part) for part in get_args(hint) if get_origin(hint) is not None and part is not hint
    )


def _reveal(text: str, name: str, environment: Mapping[str, str]) -> str:
    scheme, _, rest = text.partition(":")
    if scheme == "env":
        found = environment.get(rest)
        if found is None:
            raise OperatorError(
                f"{name}: the environment has no variable {rest[:100]}", hint="set it and restart"
            )
        return found
    if scheme == "file":
        try:
            with Path(rest).open(encoding="utf-8") as file:
                return file.read(_MAX_SECRET).strip()
        except (OSError, ValueError) as error:
            raise OperatorError(f"{name}: {rest[:200]} cannot be read: {error}") from error
    return text


def needs(package: str, extra: str) -> OperatorError:
    """What an exporter raises when a package that it needs is not installed."""
    return OperatorError(f"{package} is not installed", hint=f"pip install 'sentinel-agent[{extra}]'")


def as_exporter(made: Made) -> Exporter | None:
    """The exporter if it sends, None if it is a view or could not be made."""
    return cast("Exporter", made.exporter) if hasattr(made.exporter, "send") else None


def as_view(made: Made) -> View | None:
    """The view if it is one."""
    return cast("View", made.exporter) if hasattr(made.exporter, "render") else None
