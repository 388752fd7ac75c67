"""Conditions on single values, compiled. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.proxy.config import HeaderMatch


def header_test(header: HeaderMatch) -> Callable[[bytes | None], bool]:
    """Tells whether a value of the header fits; None is a header that is not there."""
    exact = None if header.exact is None else header.exact.encode()
    prefix = None if header.prefix is None else header.prefix.encode()
    pattern = None if header.regex is None else re.compile(header.regex.encode())

    def holds(value: bytes | None) -> bool:
        if value is None:
            return False
        if exact is not None:
            return value == exact
        if prefix is not None:
            return value.startswith(prefix)
        return pattern is None or pattern.fullmatch(value) is not None

    return (lambda value: not holds(value)) if header.invert else holds
