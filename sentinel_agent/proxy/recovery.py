"""What becomes of a request when something goes wrong: tried again, answered with a flag, or broken off.

Until the answer's head is on its way to the client, a failure may be tried again or becomes an answer of ours with a
flag. After that the client's connection is broken off, so that it cannot take a part for the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.filters import Reply

if TYPE_CHECKING:
    from sentinel_agent.proxy.exchange import Exchange

IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))
"""RFC 9110 section 9.2.2: what may be sent twice."""
_STALE_TRIES: Final = 2
_GATEWAY: Final = (502, 503, 504)


def connect_failed(exchange: Exchange, detail: str) -> None:
    """No connection came about."""
    cluster, server = exchange.cluster, exchange.server
    if cluster is not None and cluster.measured and server is not None:
        now = exchange.worker.now()
        server.measure(now - exchange.start_time, True, now)
    if not exchange.over:
        _failed(exchange, flags.CONNECT_FAILED, detail, retry=_wants(exchange, "connect"))


def upstream_lost(exchange: Exchange, exc: Exception | None) -> None:
    """The upstream's connection is gone."""
    response, connection = exchange.response, exchange.connection
    whole = exc is None and (connection is None or connection.ended or connection.cluster.tls is None)
    if response is not None and response.until_close and whole:
        exchange.complete(reusable=False)
        return
    detail = "" if exc is None else str(exc)
    if response is not None and response.until_close and exc is None:
        detail = "the answer may have been cut off: TLS was not closed in order (no close_notify)"
    if response is not None:
        upstream_broke(exchange, flags.CONNECTION_ENDED, detail)
        return
    idempotent = exchange.head.method in IDEMPOTENT
    untouched = connection is not None and not connection.heads.held
    if (
        untouched
        and idempotent
        and connection is not None
        and connection.served
        and exchange.stale < _STALE_TRIES
    ):
        exchange.stale += 1  # it was closing while we chose it: that is no failure of the server
        _drop_connection(exchange)
        if not exchange.body_gone:
            exchange.tries -= 1
            exchange.attempt()
            return
    _failed(
        exchange, flags.CONNECTION_ENDED, detail, retry=idempotent and untouched and _wants(exchange, "reset")
    )


def expired(exchange: Exchange, now: float) -> None:
    """A deadline has passed: whose, depends on what is awaited."""
    if exchange.response is not None:
        whose = flags.CLIENT_TIMEOUT if exchange.downstream.full else flags.UPSTREAM_TIMEOUT
        upstream_broke(exchange, whose, "silence inside the answer's body")
    elif not exchange.body_done and not (exchange.connection is not None and exchange.connection.full):
        refused(exchange, flags.CLIENT_TIMEOUT, 408, "the body did not come in time")
    else:
        again = 0 < now < exchange.total_deadline and exchange.head.method in IDEMPOTENT
        detail = "a filter did not decide in time" if exchange.waiting is not None else ""
        _failed(exchange, flags.UPSTREAM_TIMEOUT, detail, retry=again)


def client_left(exchange: Exchange) -> None:
    """The client's connection is gone."""
    if exchange.over:
        return
    _drop_connection(exchange)
    exchange.flag = flags.CLIENT_LEFT
    exchange.status = exchange.status or flags.CLIENT_LEFT.status
    exchange.finish(exchange.worker.now(), close=True)


def refused(exchange: Exchange, flag: flags.Flag, status: int, message: str) -> None:
    """The request broke the protocol after its head was read, or the proxy has a fault."""
    if exchange.over:
        return
    exchange.body_done = False
    if exchange.response is not None:
        upstream_broke(exchange, flag, message)
        return
    _drop_connection(exchange)
    exchange.detail = message
    exchange.answer(Reply(status, f"{message}\n".encode()), flag)


def _wants(exchange: Exchange, what: str) -> bool:
    return exchange.route is not None and what in exchange.route.spec.retry.on


def retry_status(exchange: Exchange, status: int) -> bool:
    """Try again for this status, if that was asked for; whether it was done."""
    if status < 500 or not (
        _wants(exchange, "5xx") or (status in _GATEWAY and _wants(exchange, "gateway_error"))
    ):
        return False
    if not _may_retry(exchange):
        return False
    _drop_connection(exchange, failed=True)
    _again(exchange)
    return True


def _may_retry(exchange: Exchange) -> bool:
    route, cluster = exchange.route, exchange.cluster
    if (
        route is None
        or cluster is None
        or exchange.body_gone
        or exchange.over
        or exchange.downstream.listener.draining
    ):
        return False
    if exchange.tries > route.spec.retry.attempts:
        return False
    return exchange.retrying or cluster.may_retry()


def _again(exchange: Exchange) -> None:
    assert exchange.cluster is not None, "it was tried before"
    exchange.cluster.statistics.upstream_rq_retry += 1
    if not exchange.retrying:
        exchange.retrying = True
        exchange.cluster.retries += 1
    exchange.attempt()


def _failed(exchange: Exchange, flag: flags.Flag, detail: str, *, retry: bool) -> None:
    _drop_connection(exchange, failed=True)
    if retry and _may_retry(exchange):
        _again(exchange)
    else:
        fail(exchange, flag, detail)


def fail(exchange: Exchange, flag: flags.Flag, detail: str) -> None:
    """Answer with the status and the words of `flag`."""
    _drop_connection(exchange)
    exchange.detail = detail
    exchange.answer(Reply(flag.status, f"{flag.words}\n".encode()), flag)


def upstream_broke(exchange: Exchange, flag: flags.Flag, detail: str) -> None:
    """A fault of the upstream, before or in the middle of its answer."""
    if exchange.over:
        return
    if exchange.response is None:
        _failed(exchange, flag, detail, retry=False)
        return
    _drop_connection(exchange, failed=True)
    exchange.flag, exchange.detail = flag, detail
    exchange.downstream.abort()
    exchange.finish(exchange.worker.now(), close=True)


def _drop_connection(exchange: Exchange, *, failed: bool = False) -> None:
    connection, exchange.connection = exchange.connection, None
    exchange.sent = False
    if connection is not None:
        connection.server.active -= 1
        if failed and exchange.cluster is not None and exchange.cluster.measured:
            now = exchange.worker.now()
            connection.server.measure(now - exchange.start_time, True, now)
        connection.close()
