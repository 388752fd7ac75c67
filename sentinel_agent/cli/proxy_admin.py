"""`sentinel-agent proxy status` and `proxy drain`: a running proxy, asked over its admin socket."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from sentinel_agent.cli import output
from sentinel_agent.core.units import format_duration
from sentinel_agent.errors import PeerError
from sentinel_agent.proxy.sockets import reachable
from sentinel_agent.store.store import default_data_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ADMIN_SOCKET: Final = Path("proxy") / "admin.sock"
_SECONDS: Final = 10.0
_MOST_SHOWN: Final = 20
_PATH = click.Path(path_type=Path)


def _options(verb: Callable[..., Any]) -> Callable[..., Any]:
    verb = click.option("--admin", type=_PATH, metavar="PATH", help="The proxy's admin socket.")(verb)
    return click.option("--data-dir", type=_PATH, metavar="D", help="The data directory of the proxy.")(verb)


@click.command()
@_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def status(data_dir: Path | None, admin: Path | None, as_json: bool) -> None:
    """How a running proxy is: its life, workers, clusters with the health of every server, and counters."""
    ask = _Admin(data_dir, admin)
    info = ask.json("/server_info")
    clusters = ask.json("/clusters?format=json")["cluster_statuses"]
    listeners = ask.json("/listeners?format=json")["listener_statuses"]
    stats = {each["name"]: each["value"] for each in ask.json("/stats?format=json")["stats"]}
    if as_json:
        health, words = judge(info, clusters)
        document = {"health": health, "reason": words, "server_info": info, "listeners": listeners}
        output.print_json({**document, "clusters": clusters, "stats": stats})
        return
    _show(info, clusters, listeners, stats)


@click.command()
@_options
def drain(data_dir: Path | None, admin: Path | None) -> None:
    """Accept nothing new; what is open may come to its end. The proxy runs on until it is stopped."""
    ask = _Admin(data_dir, admin)
    ask.body("POST", "/drain_listeners")
    click.echo("The listeners accept nothing new. Connections that are open end with their next answer.")


class _Admin:
    """The other end of an admin socket."""

    def __init__(self, data_dir: Path | None, admin: Path | None) -> None:
        named = os.environ.get("SENTINEL_DATA_DIR")
        folder = data_dir or (Path(named) if named else default_data_dir(os.environ, Path.home()))
        self._path = admin or folder / ADMIN_SOCKET

    def json(self, target: str) -> Any:
        """A document.

        Raises:
            PeerError: no proxy answers, or it answers something else.
        """
        try:
            return msgspec.json.decode(self.body("GET", target))
        except msgspec.DecodeError as error:
            raise PeerError(f"{target} of {self._path} is no JSON: {error}") from None

    def body(self, method: str, target: str) -> bytes:
        """The body of an answer with status 200. Raises as `json`."""
        connection = http.client.HTTPConnection("localhost", timeout=_SECONDS)
        try:
            connection.sock = self._connect()
            connection.request(method, target)
            answer = connection.getresponse()
            found = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise PeerError(
                f"no proxy answers at {self._path}: {error}",
                hint="--data-dir D or --admin PATH, as given to `sentinel-agent proxy`",
            ) from None
        finally:
            connection.close()
        if answer.status != 200:
            raise PeerError(
                f"{target}: status {answer.status}: {found[:500].decode(errors='replace').strip()}"
            )
        return found

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(_SECONDS)
            with reachable(self._path) as address:
                sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock


def judge(info: dict[str, Any], clusters: list[dict[str, Any]]) -> tuple[str, str]:
    """A proxy's health in a word (healthy, degraded, unhealthy, starting, draining) and why."""
    state = info["state"]
    if state == "DRAINING":
        return "draining", "it accepts nothing new"
    if state != "LIVE":
        return "starting", "its workers are not ready yet"
    return _judge_servers(info["workers"], {each["name"]: each["host_statuses"] for each in clusters})


def _judge_servers(
    workers: list[dict[str, Any]], clusters: dict[str, list[dict[str, Any]]]
) -> tuple[str, str]:
    silent = [each for each in workers if each["fault"]]
    if silent and len(silent) == len(workers):
        return "unhealthy", "no worker answers"
    dead = [name for name, hosts in clusters.items() if not any(host["healthy"] for host in hosts)]
    if dead:
        return "unhealthy", f"no server of cluster {dead[0]} is fit{_more(dead)}"
    if silent:
        return "degraded", f"worker {silent[0]['slot']} does not answer{_more(silent)}"
    sick = [
        f"{host['hostname']} of {name}"
        for name, hosts in clusters.items()
        for host in hosts
        if not host["healthy"]
    ]
    count = sum(map(len, clusters.values()))
    if sick:
        return "degraded", f"{len(sick)} of {_count(count, 'server')} out: {sick[0]}{_more(sick)}"
    places = f"{_count(count, 'server')} in {_count(len(clusters), 'cluster')}"
    return "healthy", f"{_count(len(workers), 'worker')}, {places}, all fit"


def _more(found: list[Any]) -> str:
    return f", and {len(found) - 1} more" if len(found) > 1 else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_COLOURS: Final = {"healthy": "green", "degraded": "yellow", "starting": "yellow", "draining": "yellow"}


def _show(
    info: dict[str, Any],
    clusters: list[dict[str, Any]],
    listeners: list[dict[str, Any]],
    stats: dict[str, float],
) -> None:
    health, words = judge(info, clusters)
    click.echo(
        f"{click.style(health.capitalize(), fg=_COLOURS.get(health, 'red'), bold=True)}: {output.clean(words)}"
    )
    uptime = format_duration(float(info["uptime_current_epoch"].removesuffix("s")))
    click.echo(f"{info['state']} for {uptime}, {output.clean(info['command_line_options']['config_path'])}")
    if info["config_reloads"]["fault"]:
        click.echo(
            f"its last change was refused, the one before is in force: {output.clean(info['config_reloads']['fault'])}"
        )
    click.echo()
    output.print_table(
        ("LISTENER", "ADDRESS", "OPEN", "REQUESTS", "5XX"),
        [
            (
                each["name"],
                each["local_address"],
                _number(
                    stats,
                    f"http.{each['name']}.downstream_cx_active",
                    f"tcp.{each['name']}.downstream_cx_active",
                ),
                _number(stats, f"http.{each['name']}.downstream_rq_total"),
                _number(stats, f"http.{each['name']}.downstream_rq_5xx"),
            )
            for each in listeners
        ],
        right=(2, 3, 4),
    )
    click.echo()
    output.print_table(
        ("CLUSTER", "FIT", "UNDER WAY", "CONNECTIONS", "REQUESTS", "5XX", "RETRIES"),
        [tuple(_cluster_row(each, stats)) for each in clusters],
        right=(1, 2, 3, 4, 5, 6),
    )
    unfit = [
        (each["name"], host) for each in clusters for host in each["host_statuses"] if not host["healthy"]
    ]
    if unfit:
        click.echo()
        output.print_table(
            ("OUT", "SERVER", "WHY", "FOR"),
            [(name, host["hostname"], _why(host), _how_long(host)) for name, host in unfit[:_MOST_SHOWN]],
        )
        if len(unfit) > _MOST_SHOWN:
            click.echo(f"and {len(unfit) - _MOST_SHOWN} more; --json has all")
    for each in info["workers"]:
        if each["fault"]:
            click.echo(f"worker {each['slot']} (pid {each['pid']}): {output.clean(each['fault'])}")


def _number(stats: dict[str, float], *names: str) -> str:
    return next((f"{stats[name]:.0f}" for name in names if name in stats), "-")


def _cluster_row(cluster: dict[str, Any], stats: dict[str, float]) -> Iterator[str]:
    hosts, at = cluster["host_statuses"], f"cluster.{cluster['name']}"
    yield cluster["name"]
    fit = f"{sum(host['healthy'] for host in hosts)}/{len(hosts)}"
    yield f"{fit} panic" if cluster["lb_healthy_panic"] else fit
    for name in (
        "upstream_rq_active",
        "upstream_cx_active",
        "upstream_rq_total",
        "upstream_rq_5xx",
        "upstream_rq_retry",
    ):
        yield _number(stats, f"{at}.{name}")


def _why(host: dict[str, Any]) -> str:
    health = host["health_status"]
    failed = ["fails its health checks"] if health["failed_active_health_check"] else []
    return ", ".join(
        [*failed, *(["its requests failed too often"] if health["failed_outlier_check"] else [])]
    )


def _how_long(host: dict[str, Any]) -> str:
    return f"{format_duration(host['ejected_for'])} more" if host["ejected_for"] else "-"
