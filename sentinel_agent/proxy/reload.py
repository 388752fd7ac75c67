"""Takes another configuration into a running worker: all of it or nothing, and no connection is lost.

Everything is made first, which may fail, and changes nothing; then it takes the place of what was there, which cannot. A
request under way ends with the routes and clusters that it began with. A listener whose address stays keeps its socket
and its connections; one that is gone is drained. A cluster that stays as it was keeps its connections and its state.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from sentinel_agent.proxy.tls import ClientTls
from sentinel_agent.proxy.tracing import Tracer
from sentinel_agent.proxy.worker import open_log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentinel_agent.proxy.config import ProxyConfig
    from sentinel_agent.proxy.listener import BaseListener
    from sentinel_agent.proxy.worker import Worker


async def reload(worker: Worker, config: ProxyConfig, sockets: Mapping[str, socket.socket]) -> None:
    """Serve `config` from now on. `sockets` are those of all its listeners; those that are not needed are closed.

    Raises:
        OperatorError, OSError: nothing has changed.
    """
    before = worker.config
    clusters = worker.make_clusters(config)
    secured = {name: ClientTls(pool.spec.tls) for name, pool in clusters.items() if pool.spec.tls is not None}
    fresh = worker.make_listeners(config, clusters)
    log_changed = before.access_log != config.access_log
    access_log = open_log(config) if log_changed else worker.access_log

    await worker.upkeep.keep(clusters.values())
    worker.config = config
    for name, tls in secured.items():  # the files may have changed where the words have not
        clusters[name].tls = tls
    gone = [pool for name, pool in worker.clusters.items() if clusters.get(name) is not pool]
    worker.clusters = clusters
    worker.tracer = Tracer(config.tracing, config.service, socket.gethostname(), worker.random)
    if before.adaptive_limit != config.adaptive_limit:
        worker.shedding.take(config.adaptive_limit)
    worker.access_log, old_log = access_log, worker.access_log
    await _take_listeners(worker, fresh, sockets)
    for pool in gone:
        for server in pool.servers:
            server.leave()
    if worker.tap is not None:
        worker.tap.begin_anew()
    if log_changed and old_log is not None:
        await asyncio.to_thread(old_log.close)


async def _take_listeners(
    worker: Worker, fresh: list[BaseListener], sockets: Mapping[str, socket.socket]
) -> None:
    left = {each.spec.name: each for each in (*worker.http, *worker.tcp)}
    taken: list[BaseListener] = []
    opened: list[BaseListener] = []
    for listener in fresh:
        name = listener.spec.name
        old = left.get(name)
        if old is None or not _adopted(old, listener):
            taken.append(listener)
            opened.append(listener)
            continue
        del left[name]
        taken.append(old)
        if worker.accepts_tls(name) == (old.tls is not None):
            sockets[name].close()
        else:
            opened.append(old)
    worker.take_listeners(taken)
    worker.routes.assign(worker.http)
    for old in left.values():
        worker.accept_no_more(old.spec.name)
        worker.spawn(worker.drain(old, worker.config.drain), f"drain {old.spec.name}")
    for listener in opened:
        await worker.listen(listener, sockets[listener.spec.name])


def _adopted(old: BaseListener, fresh: BaseListener) -> bool:
    """Whether a listener goes on in place of the one with its name and address."""
    if old.spec.address != fresh.spec.address or type(old) is not type(fresh):
        return False
    old.adopt(fresh)
    return True
