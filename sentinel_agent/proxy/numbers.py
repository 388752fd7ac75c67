"""Numbers of routes, by which the table of requests under way names them: a number never means two routes at once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.proxy.listener import HttpListener
    from sentinel_agent.proxy.routes import CompiledRoute


class RouteNumbers:
    """Gives out numbers; `names` are the routes' names by their numbers, empty where there is none."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._taken: dict[int, CompiledRoute] = {}

    def assign(self, listeners: Sequence[HttpListener]) -> None:
        """Number all routes of these: one that was there keeps its number, one that is gone does until its last request."""
        known = {(route.listener, route.name): number for number, route in self._taken.items()}
        routes = [route for listener in listeners for route in listener.routes]
        taken = {number: route for number, route in self._taken.items() if route.stats.inflight}
        fresh = []
        for route in routes:
            number = known.get((route.listener, route.name))
            if number is None:
                fresh.append(route)
            else:
                route.number = number
                taken[number] = route
        free = (number for number in range(len(routes) + len(taken)) if number not in taken)
        for route in fresh:
            route.number = next(free)
            taken[route.number] = route
        self._taken = taken
        self.names = [""] * (max(taken, default=-1) + 1)
        for number, route in taken.items():
            self.names[number] = route.name
