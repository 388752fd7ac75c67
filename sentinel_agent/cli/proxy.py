"""`sentinel-agent proxy --config F`: the embedded proxy, with the agent beside it."""

from __future__ import annotations

import asyncio
import importlib.resources
import importlib.util
import os
import secrets
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from sentinel_agent.cli.common import Invocation, invoke
from sentinel_agent.cli.options import RegexType
from sentinel_agent.cli.proxy_admin import ADMIN_SOCKET, drain, status
from sentinel_agent.cli.reporter import Reporter
from sentinel_agent.cli.session import agent_for, stop_on_signals
from sentinel_agent.clock import SystemClock
from sentinel_agent.config.load import ConfigInputs
from sentinel_agent.errors import OperatorError
from sentinel_agent.watchlist import WatchRequest

if TYPE_CHECKING:
    from sentinel_agent.proxy.children import Served
    from sentinel_agent.proxy.config import LoadedProxy

_PATH = click.Path(path_type=Path)


@click.group(invoke_without_command=True)
@click.option(
    "--config",
    "config",
    type=_PATH,
    metavar="F",
    help="The proxy's configuration, YAML or TOML.",
)
@click.option("--check", is_flag=True, help="Check the configuration and end.")
@click.option(
    "--workers", type=click.IntRange(0, 256), help="Worker processes; 0: one for each core of the quota."
)
@click.option(
    "--upgrade",
    is_flag=True,
    help="Take over from the running proxy of this configuration; no request is lost.",
)
@click.option("--no-agent", is_flag=True, help="The proxy alone.")
@click.option(
    "--match",
    type=RegexType(),
    metavar="REGEX",
    help="Also watch the Python processes whose command line matches: the service behind the proxy.",
)
@click.option("--agent-config", type=_PATH, multiple=True, metavar="F", help="The agent's configuration.")
@click.option("--data-dir", type=_PATH, metavar="D", help="Where incidents are kept.")
@click.option(
    "--admin",
    type=_PATH,
    metavar="PATH",
    help="The admin socket; else `proxy/admin.sock` of the data directory.",
)
@click.option("--listen", metavar="ADDR", help="Address of the agent's HTTP API.")
@click.option(
    "--rules", "rule_files", type=_PATH, multiple=True, metavar="F", help="Rule file; may be repeated."
)
@click.option(
    "--service", metavar="NAME", help="What the proxy is called; else `service` of its configuration."
)
@click.option("--json", "as_json", is_flag=True, help="The agent's events as one JSON object a line.")
@click.option("--beside", hidden=True, help="Run the agent's part, for the workers with this token.")
@click.option("--tap-fd", type=int, hidden=True)
@click.option("--lifeline", type=int, hidden=True)
@click.pass_context
def proxy(
    ctx: click.Context,
    config: Path | None,
    check: bool,
    workers: int | None,
    upgrade: bool,
    no_agent: bool,
    match: str | None,
    agent_config: tuple[Path, ...],
    data_dir: Path | None,
    admin: Path | None,
    listen: str | None,
    rule_files: tuple[Path, ...],
    service: str | None,
    as_json: bool,
    beside: str | None,
    tap_fd: int | None,
    lifeline: int | None,
) -> None:
    """Serve a configuration: worker processes that share the listeners, and the agent that watches them.

    Worker or agent, whatever dies is started again and the others go on. A changed configuration is taken in while it
    runs (SIGHUP: at once), a faulty one is not. Ends with Ctrl-C or SIGTERM, after requests under way have had `drain`
    seconds.
    """
    if ctx.invoked_subcommand is not None:
        if any(ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ctx.params):
            raise click.UsageError(f"options stand after the verb: proxy {ctx.invoked_subcommand} ...")
        return
    if config is None:
        raise click.UsageError("missing option '--config': expected the proxy's configuration")
    _need_extra()
    loaded = None if beside is not None or upgrade else _load(config)
    own = importlib.resources.files("sentinel_agent.proxy") / "rules.yaml"
    with importlib.resources.as_file(own) as rules:
        given = {
            "data_dir": data_dir and str(data_dir),
            "listen": listen,
            "target.service": service or (loaded.config.service if loaded is not None else None),
        }
        inputs = ConfigInputs(
            files=agent_config,
            rule_files=(rules, *rule_files),
            environment=dict(os.environ),
            overrides={name: value for name, value in given.items() if value is not None},
        )
        invocation = invoke(inputs)
        if check:
            click.echo("The configuration is sound.", err=True)
        elif beside is not None:
            asyncio.run(_watch(invocation, beside, match, tap_fd, lifeline, as_json=as_json))
        else:
            words = [] if no_agent else _agent_words(sys.argv[1:])
            path = (admin or invocation.data_dir / ADMIN_SOCKET).absolute()
            asyncio.run(_supervise(config, loaded, workers, words, invocation.data_dir, path))


def _need_extra() -> None:
    missing = [name for name in ("httptools", "uvloop") if importlib.util.find_spec(name) is None]
    if missing:
        raise OperatorError(
            f"the proxy needs {' and '.join(missing)}, not installed here",
            hint="pip install 'sentinel-agent[proxy]'",
        )


def _load(path: Path) -> LoadedProxy:
    from sentinel_agent.proxy.config import load_proxy  # noqa: PLC0415 - not for `--help`

    return load_proxy(path)


def _agent_words(arguments: list[str]) -> list[str]:
    """The command line of the agent's part: ours, with the hidden options to come."""
    return [sys.executable, "-m", "sentinel_agent", *arguments]


async def _watch(
    invocation: Invocation,
    token: str,
    match: str | None,
    tap_fd: int | None,
    lifeline: int | None,
    *,
    as_json: bool,
) -> None:
    """The agent's part: watch the workers and what `match` says, and take in what the workers tell."""
    from sentinel_agent.tap.hub import TapHub  # noqa: PLC0415 - needs the extra

    reporter = Reporter(invocation.data_dir, as_json=as_json)
    workers = rf"sentinel_agent\.proxy\.process .*--name {token}-\d+ "
    others = (
        rf"|^(?!.* --match).*?(?:{match})" if match is not None else ""
    )  # not us: the pattern is in our own words
    request = WatchRequest(match=workers + others)
    tap = TapHub(socket.socket(fileno=tap_fd), SystemClock()) if tap_fd is not None else None
    agent = agent_for(invocation, invocation.store().open(), request, reporter, tap)
    stop = asyncio.Event()
    stop_on_signals(stop, (signal.SIGINT, signal.SIGTERM))
    if lifeline is not None:
        asyncio.get_running_loop().add_reader(lifeline, stop.set)
    await agent.run(stop)


async def _supervise(
    path: Path,
    loaded: LoadedProxy | None,
    workers: int | None,
    agent: list[str],
    data_dir: Path,
    admin: Path,
) -> None:
    """Run the supervisor; without `loaded`, in place of the one that runs."""
    from sentinel_agent.proxy.sockets import close  # noqa: PLC0415 - needs the extra
    from sentinel_agent.proxy.supervisor import Supervisor  # noqa: PLC0415
    from sentinel_agent.proxy.upgrade import Door, door_path, take_over  # noqa: PLC0415

    door = door_path(data_dir, path)
    successor = take_over(door) if loaded is None else None
    served = successor.served if successor is not None else _bound(path, loaded)
    if agent and not any(word.startswith("--service") for word in agent):
        agent = [*agent, f"--service={served.config.service}"]
    stop = asyncio.Event()
    stop_on_signals(stop, (signal.SIGINT, signal.SIGTERM))
    token = secrets.token_hex(4)

    def count_of(served: Served) -> int:
        return (served.config.workers if workers is None else workers) or cores()

    with (
        tempfile.TemporaryDirectory(prefix="sentinel-proxy-") as folder,
        socket.socket(socket.AF_UNIX) as tap,
    ):
        tap_path = Path(folder) / "tap.sock"
        tap.bind(str(tap_path))
        tap.listen(64)
        beside = [f"--beside={token}", f"--tap-fd={tap.fileno()}"]
        supervisor = Supervisor(
            path,
            served,
            count_of=count_of,
            token=token,
            tap=tap_path if agent else None,
            agent_command=[*agent, *beside] if agent else None,
            admin=admin,
            agent_socket=tap,
            door=Door(door),
            clock=SystemClock(),
            tell=lambda line: click.echo(line, err=True),
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.reload_soon)
        for each in served.bound:
            click.echo(f"{each.name} listens on {each.address}", err=True)
        try:
            await supervisor.run(stop, successor)
        finally:
            close(supervisor.served.bound)


def _bound(path: Path, loaded: LoadedProxy | None) -> Served:
    from sentinel_agent.proxy.children import Served  # noqa: PLC0415 - needs the extra
    from sentinel_agent.proxy.sockets import bind  # noqa: PLC0415

    assert loaded is not None, "there is one to take over from"
    return Served(str(path), loaded.content, loaded.config, tuple(bind(loaded.config)))


def cores() -> int:
    """How many cores this container may use: of its CPU quota, and of those it may run on."""
    from sentinel_agent.target.cgroup import LimitsView  # noqa: PLC0415
    from sentinel_agent.target.procfs import ProcDir  # noqa: PLC0415

    allowed = len(os.sched_getaffinity(0))
    try:
        with ProcDir(os.getpid()) as proc:
            quota = LimitsView(proc, 0.0, 0).at(SystemClock().monotonic()).cpu_cores
    except OSError:
        return allowed
    return max(1, min(allowed, round(quota))) if quota else allowed


proxy.add_command(status)
proxy.add_command(drain)
