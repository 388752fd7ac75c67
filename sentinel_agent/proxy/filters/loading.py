"""Finds filters by entry point, checks what a configuration gives them, and makes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

from sentinel_agent.config.decode import Decoder, close_match
from sentinel_agent.errors import Fault, OperatorError
from sentinel_agent.proxy.filters import Hooks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sentinel_agent.config.decode import Where
    from sentinel_agent.config.hints import Place
    from sentinel_agent.proxy.config import FilterUse
    from sentinel_agent.proxy.filters import FilterFactory, Request, Response, Verdict

GROUP: Final = "sentinel_agent.proxy_filters"


@dataclass(frozen=True, slots=True)
class RouteFilter:
    """A filter as a route uses it; one that `observe`s answers nobody and changes nothing."""

    name: str
    observe: bool
    request: Callable[[Request], Verdict | Awaitable[Verdict]] | None
    response: Callable[[Request, Response], None] | None


@cache
def installed() -> dict[str, EntryPoint]:
    """The filters that are installed, by name."""
    return {plug.name: plug for plug in entry_points(group=GROUP)}


def make_filter(use: FilterUse) -> RouteFilter:
    """A filter that a configuration names, as its route uses it.

    Raises:
        OperatorError: there is none of that name, or it refuses its `config`.
    """
    hooks, faults = try_filter(use, lambda _: "", ())
    if hooks is None:
        words = "; ".join(f"{fault.path}: {fault.message}" for fault in faults)
        raise OperatorError(f"the filter {use.name!r} cannot be used: {words}")
    return RouteFilter(use.name, use.mode == "observe", hooks.request, hooks.response)


def try_filter(use: FilterUse, where: Where, place: Place) -> tuple[Hooks | None, list[Fault]]:
    """The hooks of a filter, or every fault of its use at `place` of a file."""
    decoder = Decoder(where)
    factory = _factory(use.name, decoder, place)
    if factory is None:
        return None, decoder.faults
    options = decoder.value(factory.Options, use.config, (*place, "config"))
    if decoder.faults:
        return None, decoder.faults
    try:
        hooks: Any = factory(options).hooks
        if not isinstance(hooks, Hooks):
            raise TypeError(f"its hooks are a {type(hooks).__name__}: expected Hooks")  # noqa: TRY301
    except Exception as error:  # noqa: BLE001 - a stranger's filter may raise anything
        decoder.fault((*place, "config"), _words(error))
        return None, decoder.faults
    return hooks, []


def _factory(name: str, decoder: Decoder, place: Place) -> FilterFactory | None:
    plug = installed().get(name)
    if plug is None:
        known = sorted(installed())
        near = close_match(name, known) or f"; installed: {', '.join(known)}"
        decoder.fault((*place, "name"), f"there is no filter {name!r}{near}")
        return None
    try:
        factory: FilterFactory = plug.load()
        factory.Options  # noqa: B018 - that it has them
    except Exception as error:  # noqa: BLE001 - as above
        decoder.fault((*place, "name"), f"the filter {name!r} cannot be loaded: {_words(error)}")
        return None
    return factory


def _words(error: Exception) -> str:
    if isinstance(error, OperatorError):
        return error.message
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"[:300]
