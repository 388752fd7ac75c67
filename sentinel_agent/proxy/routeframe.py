"""A frame in the stack that says for which route the code above it runs: `route api`.

Whoever reads the stacks from outside (this agent, py-spy, perf) sees it as any other frame, so that a flame graph can be
narrowed down to a route. It is a real one: a function that calls what it is given, whose code has the route's name.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from sentinel_agent.profile.names import ROUTE_PREFIX

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def _call(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


async def _wait(work: Awaitable[Any]) -> Any:
    return await work


def caller(route: str) -> Callable[..., Any]:
    """Calls its first argument with the others, in a frame called by the route."""
    return cast("Callable[..., Any]", _named(_call, route))


def waiter(route: str) -> Callable[[Awaitable[Any]], Awaitable[Any]]:
    """Waits for its argument, in a frame called by the route."""
    return cast("Callable[[Awaitable[Any]], Awaitable[Any]]", _named(_wait, route))


def _named(function: Any, route: str) -> FunctionType:
    name = ROUTE_PREFIX + route
    code = function.__code__.replace(co_name=name, co_qualname=name)
    return FunctionType(code, function.__globals__, name)
