"""What a piece of work is for, told to whoever reads this process from outside.

with sentinel_agent.context(route="/pay", trace_id="4bf92f35"):
    await work()                # task dumps show both beside this task, and beside all that it creates meanwhile

It is one str in a context variable (PEP 567), which asyncio hands on to tasks and `asyncio.to_thread` to threads. Nothing is sent, locked or
looked up: entering and leaving costs about a microsecond, whether an agent is there or not. The agent finds it by the names
of this module and of `CURRENT` (cpython/contexts.py). It runs on CPython 3.8 too, and imports `contextvars` alone.
"""

from __future__ import annotations

from contextvars import ContextVar

TYPE_CHECKING = False  # a service does not pay for `typing`
if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

BETWEEN_PAIRS, WITHIN_PAIR = "\x1e", "\x1f"  # ASCII's own separators of records and units
MOST = 900
"""Characters of all labels together; of more, the newest are kept."""
_MOST_VALUE = 120

CURRENT: ContextVar[str] = ContextVar("sentinel_agent.context", default="")


class RequestContext:
    """Labels that hold within a `with` block; made by `context`. May be nested: the inner ones are added to the outer ones."""

    __slots__ = ("_token", "_words")

    def __init__(self, labels: dict[str, object]) -> None:
        """Keep the labels as one text."""
        self._words = BETWEEN_PAIRS.join(
            [name + WITHIN_PAIR + str(value)[:_MOST_VALUE] for name, value in labels.items()]
        )
        self._token: Token[str] | None = None

    def __enter__(self) -> None:
        """The labels hold from here on."""
        outer = CURRENT.get()
        words = outer + BETWEEN_PAIRS + self._words if outer else self._words
        if len(words) > MOST:
            words = words[-MOST:].partition(BETWEEN_PAIRS)[2]
        self._token = CURRENT.set(words)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """They hold no longer; an asynchronous generator that is closed by somebody else is left with its own."""
        if self._token is not None:
            try:  # noqa: SIM105 - `suppress` would cost each request more than all the rest
                CURRENT.reset(self._token)
            except ValueError:  # left in another context than it was entered in: it ends there by itself
                pass
            self._token = None


def context(**labels: object) -> RequestContext:
    """Say what the work within a `with` block is for: a route, a trace id, a tenant. Values are shown as `str` has them, cut."""
    return RequestContext(labels)
