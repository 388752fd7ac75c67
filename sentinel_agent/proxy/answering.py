"""An upstream's answer on its way back to the client: its head read and edited, its body followed to its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sentinel_agent.proxy import flags
from sentinel_agent.proxy.encoding import Encoding
from sentinel_agent.proxy.filtering import run_response_filters
from sentinel_agent.proxy.recovery import retry_status, upstream_broke
from sentinel_agent.proxy.tunnel import join_upgraded
from sentinel_agent.proxy.wire.body import ChunkedBody
from sentinel_agent.proxy.wire.edit import lines_pattern, response_head
from sentinel_agent.proxy.wire.faults import WireError
from sentinel_agent.proxy.wire.head import parse_response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.filters import Encoder
    from sentinel_agent.proxy.view import ResponseView
    from sentinel_agent.proxy.wire.head import ResponseHead

log = logging.getLogger(__name__)

_FRAMING = frozenset((b"transfer-encoding", b"content-length"))
_TRANSFER_ENCODING = lines_pattern((b"transfer-encoding",))
_JOIN_BYTES = 16 * 1024


def answered(exchange: Exchange, data: bytes) -> None:
    """A piece of the upstream's answer."""
    try:
        if exchange.response is None:
            _read_head(exchange, data)
        else:
            _relay(exchange, b"", data)
    except WireError as error:
        upstream_broke(exchange, flags.UPSTREAM_FAULT, error.message)
    except Exception as error:
        log.exception("internal fault while an answer was read")
        upstream_broke(exchange, flags.INTERNAL, f"{type(error).__name__}: {error}")


def _read_head(exchange: Exchange, data: bytes) -> None:
    connection = exchange.connection
    assert connection is not None, "the answer came from it"
    while True:
        taken = connection.heads.take(data)
        if taken is None:
            return
        raw, data = taken
        response = parse_response(raw, exchange.head.method)
        if response.status >= 200 or response.status == 101:
            break
        if exchange.head.minor:
            exchange.downstream.transport.write(raw)
            exchange.bytes_out += len(raw)
    if response.status == 101:
        _switch(exchange, response, data)
    elif not retry_status(exchange, response.status):
        _begin(exchange, response, data)


def _begin(exchange: Exchange, response: ResponseHead, rest: bytes) -> None:
    route, head = exchange.route, exchange.head
    assert route is not None, "it was routed"
    exchange.response = response
    exchange.status = response.status
    exchange.head_time = exchange.worker.now()
    exchange.close_after = (
        not head.keep_alive
        or response.until_close
        or not exchange.body_done
        or exchange.downstream.listener.draining
    )
    removed, added = route.response_removed, route.response_added
    view: ResponseView | None = None
    if exchange.view is not None:
        view = route.call(run_response_filters, exchange, exchange.view, response)
    if view is not None and (view.edits or view.encoders):
        added += view.lines()
        names = {*route.response_names, *view.names()}
        if view.encoders:
            names |= _FRAMING
            added += _encode(exchange, view.encoders)
        removed = lines_pattern(names)
    if response.chunked:
        exchange.answer_chunks = ChunkedBody(502)
        if not head.minor:
            exchange.dechunk = exchange.close_after = True
    else:
        exchange.answer_left = response.length or 0
    close = exchange.close_after
    out = response_head(response, close=close, minor=head.minor, removed=removed, added=added)
    if exchange.dechunk and exchange.encoding is None:
        out = _TRANSFER_ENCODING.sub(b"", out)
    _relay(exchange, out, rest)


def _encode(exchange: Exchange, encoders: Sequence[Encoder]) -> bytes:
    """The body will go through these; the lines that frame it."""
    chunked = bool(exchange.head.minor)
    exchange.encoding = Encoding(encoders, chunked=chunked)
    exchange.dechunk = True
    if chunked:
        return b"Transfer-Encoding: chunked\r\n"
    exchange.close_after = True
    return b""


def _relay(exchange: Exchange, out: bytes, data: bytes) -> None:
    """Hand on a piece of the answer's body, after `out`; end the exchange with the last piece."""
    response = exchange.response
    assert response is not None, "its head was read"
    extra = False
    if exchange.answer_chunks is not None:
        payload: list[bytes] | None = [] if exchange.dechunk else None
        end = exchange.answer_chunks.feed(data, 0, payload)
        done = exchange.answer_chunks.done
        if end < len(data):
            data, extra = data[:end], True
        if payload is not None:
            data = b"".join(payload)
    elif response.until_close:
        done = False
    else:
        left = exchange.answer_left
        if len(data) > left:
            data, extra = data[:left], True
        left = exchange.answer_left = left - len(data)
        done = not left
    encoding = exchange.encoding
    if encoding is not None:
        route = exchange.route
        assert route is not None, "it was routed"
        data = route.call(encoding.end if done else encoding.feed, data)
    transport = exchange.downstream.transport
    if not out:
        transport.write(data)
    elif len(data) <= _JOIN_BYTES:
        data = out + data
        transport.write(data)
    else:
        transport.write(out)
        transport.write(data)
        exchange.bytes_out += len(out)
    exchange.bytes_out += len(data)
    if done:
        exchange.complete(reusable=response.keep_alive and exchange.body_done and not extra)
    else:
        exchange.arm()


def _switch(exchange: Exchange, response: ResponseHead, rest: bytes) -> None:
    """101: from here on bytes go both ways, whatever they are."""
    wanted, route = exchange.head.upgrade, exchange.route
    assert route is not None, "it was routed"
    if wanted is None or wanted.decode("latin-1") not in route.spec.upgrades or not exchange.body_done:
        raise WireError(502, "the upstream changed to a protocol that nobody asked for")
    connection, downstream = exchange.connection, exchange.downstream
    assert connection is not None, "the answer came from it"
    exchange.response, exchange.status, exchange.head_time = response, 101, exchange.worker.now()
    exchange.bytes_out += len(response.raw)
    connection.exchange = None
    exchange.connection = None
    join_upgraded(exchange, downstream, connection, response.raw + rest)
