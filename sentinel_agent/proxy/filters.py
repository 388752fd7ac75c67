"""What a filter is: hooks that see a request before it goes on and a response before it goes back.

A filter is made once for each route that uses it, by a factory: a callable that takes the filter's `config` and returns
`Hooks`. Strangers' factories are found by the entry point group `sentinel_agent.proxy_filters`, ours by the same door.
Hooks run on the event loop: they must not wait. `request_async` may; it costs a task for each request of its route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    from sentinel_agent.proxy.config import FilterUse

GROUP = "sentinel_agent.proxy_filters"

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer given in place of the upstream's."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Request(Protocol):
    """What a filter sees of a request and may change of it."""

    @property
    def method(self) -> bytes: ...
    @property
    def target(self) -> bytes:
        """Path and query, dot segments resolved."""
        ...

    @property
    def client(self) -> str:
        """The address of the client."""
        ...

    def header(self, name: str) -> bytes | None:
        """The value of a header; one given more than once is joined with commas."""
        ...

    def set_header(self, name: str, value: str) -> None:
        """Replace a header or add it.

        Raises:
            ValueError: no name or no value of a header, or one that frames the message.
        """
        ...


class Response(Protocol):
    """What a filter sees of a response and may change of it."""

    @property
    def status(self) -> int: ...

    def set_header(self, name: str, value: str) -> None:
        """Replace a header or add it; raises like `Request.set_header`."""
        ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of one filter; those that are None cost nothing. An exception of one is a 500 of that request only."""

    request: Callable[[Request], Reply | None] | None = None
    request_async: Callable[[Request], Awaitable[Reply | None]] | None = None
    response: Callable[[Request, Response], None] | None = None


Factory = Callable[[Mapping[str, Value]], Hooks]


def make_filter(use: FilterUse) -> Hooks:
    """The filter that a configuration names.

    Raises:
        OperatorError: there is none of that name, or it refuses its `config`.
    """
    plugs = {plug.name: plug for plug in entry_points(group=GROUP)}
    plug = plugs.get(use.name)
    if plug is None:
        known = ", ".join(sorted(plugs)) or "none"
        raise OperatorError(f"there is no filter {use.name!r}; installed: {known}")
    try:
        hooks: Any = plug.load()(use.config)
    except Exception as error:
        raise OperatorError(
            f"the filter {use.name!r} cannot be used: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(hooks, Hooks):
        raise OperatorError(f"the filter {use.name!r} cannot be used: its factory gives no Hooks")
    return hooks
