"""Sentinel Agent: the black box of a Python proxy.

Inside a service: `sentinel_agent.start()` starts the watcher beside it; see `sentinel_agent.library`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing this package costs a service nothing, not even `typing`
if TYPE_CHECKING:
    from sentinel_agent.library import Watcher, start
    from sentinel_agent.request_context import context

__version__ = "0.1.0.dev0"
__all__ = ["Watcher", "__version__", "context", "start"]


def __getattr__(name: str) -> object:
    """Load the library's names when they are first used (PEP 562)."""
    if name == "context":
        from sentinel_agent.request_context import context  # noqa: PLC0415 - imported by services that use it

        globals()[name] = context  # used for each request: not looked for again
        return context
    if name not in {"Watcher", "start"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sentinel_agent import library  # noqa: PLC0415 - only a service that starts the watcher needs it

    return getattr(library, name)
