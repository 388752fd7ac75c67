r"""Regular expressions that take linear time, whatever is written in them: a request must not be able to stop the agent.

Python's `re` backtracks, and holds the interpreter lock meanwhile. So the expression is compiled to a Thompson
automaton (Ken Thompson, "Regular Expression Search Algorithm", CACM 11(6), 1968; Russ Cox, "Regular Expression
Matching: the Virtual Machine Approach", 2009), as RE2 does. The whole subject must match. Known are literals, `.`, classes,
the escapes of one character, groups, `|`, `* + ? {n,m}` (lazy ones too, which makes no difference here), `^` at the
start, `$` at the end and `(?i)` and `(?s)` in front. Anything else is refused.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_STEPS = 20_000
"""Most instructions of a program; repetitions are written out."""
_MAX_DEPTH = 50

_CLASS = re.compile(r"\[\^?\]?(?:\[:\^?[a-z]+:\]|[^\]\\]|\\.)*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|x\{[0-9a-fA-F]{1,6}\}|[dDwWsS]|[^A-Za-z0-9]|[aftnrv])", re.DOTALL)
_COUNT = re.compile(r"\{(\d{1,4})(?:(,)(\d{1,4})?)?\}")
_FLAGS = re.compile(r"\(\?([is]{1,2})\)")


class _Step(NamedTuple):
    """Take a character that `atom` matches, or (without one) go on at each of `to`; nowhere to go is the end."""

    atom: re.Pattern[str] | None
    to: tuple[int, ...] = ()


class Pattern:
    """A compiled expression."""

    def __init__(self, text: str) -> None:
        """Compile it.

        Raises:
            ValueError: it is no expression that is known here, or it is too large.
        """
        flags = _FLAGS.match(text)
        self._flags = re.IGNORECASE if flags and "i" in flags[1] else re.NOFLAG
        self._text = text[flags.end() :] if flags else text
        self._text = self._text.removeprefix("^")
        if self._text.endswith("$") and not self._text.endswith("\\$"):
            self._text = self._text[:-1]
        self._at = 0
        self._steps: list[_Step] = []
        self._alternatives(_MAX_DEPTH)
        if self._at < len(self._text):
            raise self._fault("a parenthesis that was not opened")
        self._steps.append(_Step(None))
        self._end = len(self._steps) - 1

    def fullmatch(self, subject: str) -> bool:
        """Whether all of `subject` matches; takes time in proportion to it."""
        now = self._follow([0])
        for char in subject:
            following = [
                at + 1
                for at in now
                if (atom := self._steps[at].atom) is not None and atom.fullmatch(char) is not None
            ]
            if not following:
                return False
            now = self._follow(following)
        return self._end in now

    def _follow(self, starts: list[int]) -> set[int]:
        seen: set[int] = set()
        todo = starts
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                step = self._steps[at]
                if step.atom is None:
                    todo += step.to
        return seen

    # -- the grammar: alternatives of sequences of repeated atoms ---------------------------------------------

    def _alternatives(self, depth: int) -> None:
        if depth < 0:
            raise self._fault("groups nested too deeply")
        begin = len(self._steps)
        ends: list[int] = []
        self._sequence(depth)
        while self._peek() == "|":
            self._at += 1
            self._insert(begin, _Step(None, (begin + 1, len(self._steps) + 2)))
            ends.append(self._add(_Step(None)))
            begin = len(self._steps)
            self._sequence(depth)
        for end in ends:
            self._steps[end] = _Step(None, (len(self._steps),))

    def _sequence(self, depth: int) -> None:
        while self._peek() not in ("", "|", ")"):
            begin = len(self._steps)
            self._atom(depth)
            self._repeats(begin)

    def _atom(self, depth: int) -> None:
        char = self._peek()
        if char == "(":
            head = re.compile(r"\((?:\?:|\?P?<\w+>)?").match(self._text, self._at)
            assert head is not None
            self._at = head.end()
            if self._peek() == "?":
                raise self._fault("a group that looks around or sets flags")
            self._alternatives(depth - 1)
            if self._peek() != ")":
                raise self._fault("a group that is not closed")
            self._at += 1
            return
        if char in "*+?^$":
            raise self._fault(f"{char!r} in a place where it means nothing")
        form = {"[": _CLASS, "\\": _ESCAPE}.get(char)
        if form is None:
            found, self._at = char, self._at + 1
        else:
            matched = form.match(self._text, self._at)
            if matched is None:
                raise self._fault("an escape or a class that is not known")
            found, self._at = matched[0], matched.end()
        source = found if char in "[\\." else re.escape(found)
        try:
            self._add(_Step(re.compile(source, re.DOTALL | self._flags)))
        except (re.error, OverflowError) as error:
            raise self._fault(str(error)) from error

    def _repeats(self, begin: int) -> None:
        char = self._peek()
        counted = _COUNT.match(self._text, self._at)
        if char and char in "*+?":
            least, most, self._at = int(char == "+"), 1 if char == "?" else None, self._at + 1
        elif counted:
            least = int(counted[1])
            most = (int(counted[3]) if counted[3] else None) if counted[2] else least
            self._at = counted.end()
        else:
            return
        if self._peek() == "?":
            self._at += 1
        body = self._steps[begin:]
        del self._steps[begin:]
        if most is not None and most < least:
            raise self._fault("a repetition whose most is less than its least")
        for _ in range(least):
            self._copy(body, begin)
        if most is None:
            here = len(self._steps)
            self._add(_Step(None, (here + 1, here + len(body) + 2)))
            self._copy(body, begin)
            self._add(_Step(None, (here,)))
        else:
            after = len(self._steps) + (most - least) * (len(body) + 1)
            for _ in range(most - least):
                self._add(_Step(None, (len(self._steps) + 1, after)))
                self._copy(body, begin)

    def _copy(self, body: list[_Step], begin: int) -> None:
        shift = len(self._steps) - begin
        for step in body:
            self._add(_Step(step.atom, tuple(to + shift for to in step.to)))

    def _insert(self, at: int, step: _Step) -> None:
        """Put a step before those from `at` on, which move by one."""
        moved = [_Step(each.atom, tuple(to + 1 for to in each.to)) for each in self._steps[at:]]
        self._steps[at:] = [step, *moved]

    def _add(self, step: _Step) -> int:
        if len(self._steps) >= MAX_STEPS:
            raise self._fault(f"more than {MAX_STEPS} steps")
        self._steps.append(step)
        return len(self._steps) - 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _fault(self, what: str) -> ValueError:
        return ValueError(f"not a regular expression that is known here: {what}, at character {self._at + 1}")
