"""What of a request's head goes upstream: rewritten, its lines edited, what the proxy has to say added."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.proxy.wire.edit import lines_pattern, request_head

if TYPE_CHECKING:
    from sentinel_agent.proxy.exchange import Exchange
    from sentinel_agent.proxy.routes import CompiledRoute


def upstream_head(exchange: Exchange, route: CompiledRoute, address: str) -> bytes:
    """The head of a request as the server at `address` gets it; nothing, where the rewrite of the route makes no path."""
    head = exchange.head
    fields = head.fields
    came = fields.get(b"x-forwarded-for") if exchange.downstream.listener.spec.trust_forwarded else None
    added = added_lines(exchange, route, address, head.target, came, b"x-request-id" in fields)
    removed = None if route.removed.isdisjoint(fields) else route.removed_pattern
    color = route.color
    if color is not None and exchange.mark is not None:
        came_with = fields.get(color.field)
        added += color.line(came_with, exchange.mark)
        removed = lines_pattern((*route.removed, color.field))
    view = exchange.view
    if view is not None and view.edits:
        added += view.lines()
        own = (color.field,) if color is not None and exchange.mark is not None else ()
        removed = lines_pattern((*route.removed, *own, *view.names()))
    target = route.rewritten(head.target)
    if target == b"":
        return b""
    host = route.spec.host_rewrite.encode() if route.spec.host_rewrite is not None else None
    if route.spec.auto_host_rewrite or (host is None and b"host" not in fields):
        host = address.encode()
    upgrade = head.upgrade
    return request_head(
        head,
        target=target,
        host=host,
        removed=removed,
        added=added,
        upgrade=upgrade if upgrade and upgrade.decode("latin-1") in route.spec.upgrades else None,
    )


def added_lines(
    exchange: Exchange,
    route: CompiledRoute,
    address: str,
    target: bytes,
    came: bytes | None,
    has_id: bool = False,
) -> bytes:
    """The header lines that the upstream gets from us; `came` is the chain of proxies before us, where we trust it."""
    downstream, place = exchange.downstream, exchange.place
    added, spec = route.added, route.spec
    if spec.forwarded:
        chain = downstream.forwarded if came is None else b"%b, %b" % (came, downstream.forwarded)
        added += b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (chain, downstream.scheme)
    if spec.request_id and not has_id:
        number = place.context.trace_id if place else exchange.worker.random.getrandbits(128)
        added += b"X-Request-Id: %032x\r\n" % number
    if place is not None:
        added += exchange.worker.tracer.lines(place, target, address)
    return added
