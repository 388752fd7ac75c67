"""Boolean trigger expressions over several metrics, in CEL (Common Expression Language, cel.dev).

Judged by Google's `cel_expr_python`, an optional extra. Every number is a double, readings and literals alike:
CEL has no arithmetic between int and double, so integer literals are written as doubles before compiling, and
metrics are declared as doubles. So every fault of type is found when the rule is loaded.

Bounds: the library refuses nesting over 32 levels and stops a comprehension after 10,000 steps; here the length
is bounded, and list macros may not be nested, so that one evaluation stays under a millisecond.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

from sentinel_agent.core.trigger import Judgement
from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_LENGTH = 1000
MAX_METRICS = 32

_TOKEN = re.compile(
    r"""
    (?P<other>
        //[^\n]*                                                        # comment
      | [bB]?[rR][bB]?(?:\"{3}[\s\S]*?\"{3}|'{3}[\s\S]*?'{3}|"[^"\n]*"|'[^'\n]*')   # raw string
      | [bB]?(?:\"{3}(?:\\[\s\S]|[^\\])*?\"{3}|'{3}(?:\\[\s\S]|[^\\])*?'{3})         # long string
      | [bB]?(?:"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')                          # string
      | [A-Za-z_]\w*
      | 0[xX][0-9a-fA-F]+[uU]?
      | \d*\.\d+(?:[eE][+-]?\d+)? | \d+[eE][+-]?\d+ | \d+[uU]
    )
    | (?P<integer>\d+)
    """,
    re.VERBOSE,
)
_UNDECLARED = re.compile(
    r"^ERROR: [^ ]+ undeclared reference to '([^']+)' \(in container ''\)$", re.MULTILINE
)
_PLACE = re.compile(r"^ERROR: <input>:-?\d+:-?\d+: ", re.MULTILINE)
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|existsOne|map|filter)\s*\(")
_LIBRARY_FAULTS = (RuntimeError, TypeError, ValueError)


class ExpressionFaultError(OperatorError):
    """An expression that cannot be used, or the library for it is not there."""


class Expression:
    """A compiled expression. `metrics` are the names it reads, sorted."""

    __slots__ = ("_program", "metrics", "source")

    def __init__(self, source: str) -> None:
        """Compile `source`.

        Raises:
            ExpressionFaultError: it is too long or too deep, does not parse, mixes types, gives no boolean, or the
                extra `cel` is not installed.
        """
        self.source = source
        _check_bounds(source)
        self._program, self.metrics = _compile(source)

    def judge(self, values: Mapping[str, float]) -> Judgement:
        """The answer for the readings there are. What goes wrong is data: test `no_data` or `error`, and why.

        A missing reading is no fault where the answer does not depend on it: `true || missing` is true.
        """
        present = {name: values[name] for name in self.metrics if name in values}
        try:
            answer = self._program.eval(data=present).value()
        except _LIBRARY_FAULTS as fault:
            return Judgement(False, "error", detail=_first_line(str(fault)))
        if isinstance(answer, bool):
            return Judgement(answer, "expression" if answer else "no_match")
        missing = [name for name in self.metrics if name not in values]
        if missing:
            return Judgement(False, "no_data", detail=f"no reading of {', '.join(missing)}")
        return Judgement(False, "error", detail=_first_line(str(answer)))


def _check_bounds(source: str) -> None:
    if len(source) > MAX_LENGTH:
        raise ExpressionFaultError(
            f"the expression has {len(source)} characters; at most {MAX_LENGTH} are allowed"
        )
    if len(_MACRO.findall(source)) > 1:
        raise ExpressionFaultError(
            "the expression has more than one list macro (all, exists, exists_one, map, filter)",
            hint="write the conditions one by one, with && and ||",
        )


def _compile(source: str) -> tuple[Any, tuple[str, ...]]:
    """The program and the metrics it reads: names that the compiler does not know are metrics, one level per round."""
    cel = _library()
    widened = _TOKEN.sub(lambda token: f"{token[0]}.0" if token["integer"] else token[0], source)
    names: set[str] = set()
    while True:
        try:
            program = cel.NewEnv(variables=dict.fromkeys(names, cel.Type.DOUBLE)).compile(widened)
        except _LIBRARY_FAULTS as fault:
            unknown = {name.split(".")[0] for name in _UNDECLARED.findall(_without_status(str(fault)))}
            if unknown <= names or len(names | unknown) > MAX_METRICS:
                raise _fault(source, str(fault), names | unknown) from None
            names |= unknown
        else:
            break
    if not names:
        raise ExpressionFaultError(f"the expression {_shown(source)} reads no metric")
    if program.return_type() != cel.Type.BOOL:
        raise ExpressionFaultError(
            f"the expression {_shown(source)} gives a {program.return_type().name().lower()}, not a boolean",
            hint="compare it with something, for example `cpu > 80`",
        )
    return program, tuple(sorted(names))


def _library() -> Any:
    try:
        return importlib.import_module("cel_expr_python.cel")
    except ImportError:
        raise ExpressionFaultError(
            "trigger expressions need the package cel-expr-python, which is not installed: "
            "pip install 'sentinel-agent[cel]'",
            hint="pip install 'sentinel-agent[cel]', or write the trigger as min/max/abs/diff/below",
        ) from None


def _fault(source: str, text: str, names: set[str]) -> ExpressionFaultError:
    if len(names) > MAX_METRICS:
        return ExpressionFaultError(f"the expression names more than {MAX_METRICS} metrics")
    found = "; ".join(
        line for line in _PLACE.sub("", _without_status(text)).splitlines() if not line.startswith(" |")
    )[:300]
    hint = None
    if "overload" in found:
        hint = "readings and number literals are doubles; write double(...) around what is an int, such as size()"
    return ExpressionFaultError(f"the expression {_shown(source)} cannot be used: {found}", hint=hint)


def _without_status(text: str) -> str:
    """The compiler's message as lines that each begin with ERROR, its status words cut off."""
    return text.removeprefix("INVALID_ARGUMENT: ").replace(" [INVALID_ARGUMENT]", "")


def _shown(source: str) -> str:
    return repr(source if len(source) <= 100 else f"{source[:97]}...")


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:200]
