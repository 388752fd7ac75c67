"""What the verbs share: the common options, the merged configuration, logging, the store."""

from __future__ import annotations

import functools
import logging
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from sentinel_agent.clock import SystemClock
from sentinel_agent.config.environment import CONFIG_VARIABLE
from sentinel_agent.config.load import ConfigInputs, Loaded, attempt, load
from sentinel_agent.errors import ConfigError
from sentinel_agent.store.store import Store, default_data_dir
from sentinel_agent.target.rights import raise_ptrace

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass(frozen=True, slots=True)
class Invocation:
    """What the common options came to. `inputs` can be loaded again for hot reload; `fault` is why they are not in force."""

    inputs: ConfigInputs
    loaded: Loaded
    data_dir: Path
    fault: str | None = None

    def store(self) -> Store:
        """The store of the data directory, not opened: enough for reading."""
        return Store(self.data_dir, self.loaded.settings.store, SystemClock())


def common_options(verb: F) -> F:
    """Add `--config`, `--data-dir`, `--listen`, `--rules`, `--service` and `--allow-injection`; the verb gets an `Invocation` first."""
    return _with_options(verb, invoke)


def lenient_options(verb: F) -> F:
    """The same for a verb that must start: a faulty configuration is replaced by the defaults until it is mended."""
    return _with_options(verb, invoke_leniently)


def _with_options(verb: F, prepare: Callable[[ConfigInputs], Invocation]) -> F:
    path = click.Path(path_type=Path)

    @click.option(
        "--config", "config", type=path, multiple=True, metavar="F", help="Configuration file, YAML or TOML."
    )
    @click.option("--data-dir", type=path, metavar="D", help="Where incidents are kept.")
    @click.option("--listen", metavar="ADDR", help="Address of the HTTP API and the web page, or `off`.")
    @click.option(
        "--rules", "rule_files", type=path, multiple=True, metavar="F", help="Rule file; may be repeated."
    )
    @click.option("--service", metavar="NAME", help="What the watched service is called.")
    @click.option(
        "--allow-injection",
        is_flag=True,
        help="Captures that need it may run a small piece of code in the target (tracemalloc, memray, gc).",
    )
    @functools.wraps(verb)
    def wrapped(
        *args: Any,
        config: tuple[Path, ...],
        data_dir: Path | None,
        listen: str | None,
        rule_files: tuple[Path, ...],
        service: str | None,
        allow_injection: bool,
        **options: Any,
    ) -> Any:
        given: dict[str, Any] = {
            "data_dir": data_dir and str(data_dir),
            "listen": listen,
            "target.service": service,
        }
        if allow_injection:
            given["capture.allow_injection"] = True
        named = os.environ.get(CONFIG_VARIABLE)
        inputs = ConfigInputs(
            files=config or ((Path(named),) if named else ()),
            rule_files=rule_files,
            environment=dict(os.environ),
            overrides={name: value for name, value in given.items() if value is not None},
        )
        return verb(prepare(inputs), *args, **options)

    return wrapped  # type: ignore[return-value]  # click's decorators keep the callable, functools.wraps the name


def invoke(inputs: ConfigInputs) -> Invocation:
    """Load the configuration, set up logging, and take the rights that were given.

    Raises:
        ConfigError: with every fault of every file.
    """
    raise_ptrace()
    loaded = load(inputs)
    _set_up_logging(loaded.settings.log.level, json_lines=loaded.settings.log.format == "json")
    for warning in loaded.warnings:
        logging.getLogger("sentinel_agent.config").warning("%s", warning)
    named = loaded.settings.data_dir
    data_dir = Path(named).expanduser() if named else default_data_dir(os.environ, Path.home())
    return Invocation(inputs, loaded, data_dir.absolute())


def invoke_leniently(inputs: ConfigInputs) -> Invocation:
    """As `invoke`, but with faults in `fault`: then what is in force are the defaults and as much of the rest as is sound."""
    try:
        return invoke(inputs)
    except ConfigError as error:
        fault = str(error)
    without_files = replace(inputs, files=(), rule_files=())
    try:
        invocation = invoke(without_files)
    except ConfigError:
        invocation = invoke(replace(without_files, environment={}, overrides={}))
    # The files are those of the real inputs, so that a reload sees them being mended.
    loaded = replace(invocation.loaded, files=attempt(inputs).files)
    return replace(invocation, inputs=inputs, loaded=loaded, fault=fault)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


def _set_up_logging(level: str, *, json_lines: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonLines() if json_lines else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    root = logging.getLogger("sentinel_agent")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
