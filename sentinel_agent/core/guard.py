"""The guard of a capture: a condition under which it is skipped, because it could hurt.

Written as a trigger expression. Comparisons of one metric with one number, alone or joined by `||`, are judged here, so that a
guard needs no extra; anything else is CEL. In doubt a guard skips: a reading that is missing, or an expression that cannot be
judged, is a reason too.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING

from sentinel_agent.core.expression import Expression, ExpressionFaultError
from sentinel_agent.core.metrics import unit_of
from sentinel_agent.core.sentence import format_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_COMPARISON = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(>=|<=|>|<)\s*(\d+(?:\.\d+)?)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Guard:
    """A condition that was read. `metrics` are the names it needs, sorted."""

    __slots__ = ("_comparisons", "_expression", "metrics", "source")

    def __init__(self, source: str) -> None:
        """Read `source`.

        Raises:
            ExpressionFaultError: it is neither comparisons nor usable CEL.
        """
        self.source = source
        found = [_COMPARISON.fullmatch(part) for part in source.split("||")]
        self._comparisons = [(each[1], each[2], float(each[3])) for each in found if each]
        self._expression = None if all(found) else Expression(source)
        names = self._expression.metrics if self._expression else {each[0] for each in self._comparisons}
        self.metrics = tuple(sorted(names))

    def reason(self, values: Mapping[str, float]) -> str | None:
        """Why the capture is to be skipped, None if it may run; `values` are the readings of this moment by metric."""
        missing = [name for name in self.metrics if name not in values]
        if missing:
            return f"skip_when `{self.source}`: {', '.join(missing)} is not known at this moment"
        if self._expression is None:
            met = any(_COMPARE[sign](values[name], bound) for name, sign, bound in self._comparisons)
        else:
            judgement = self._expression.judge(values)
            if judgement.test == "error":
                return f"skip_when `{self.source}` cannot be judged: {judgement.detail}"
            met = judgement.matched
        if not met:
            return None
        now = ", ".join(f"{name} is {format_value(values[name], unit_of(name))}" for name in self.metrics)
        return f"skip_when `{self.source}`: {now}"


def skip_reason(source: str, values: Mapping[str, float]) -> str | None:
    """As `Guard.reason`, for a guard that may be unusable; then that is the reason."""
    try:
        return Guard(source).reason(values)
    except ExpressionFaultError as fault:
        return f"skip_when cannot be used: {fault.message}"
