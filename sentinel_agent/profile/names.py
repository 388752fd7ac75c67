"""Names of the target's functions and files, made safe to show: no control character reaches a terminal or a page."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sentinel_agent.profile.record import Frame, Thread

# Controls, format characters (right-to-left overrides among them), line and paragraph separators, unassigned.
_UNSAFE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
ROUTE_FILE: Final = "proxy/routeframe.py"
ROUTE_PREFIX: Final = "route "
"""How functions of that file are called: by the route of the embedded proxy for which what is above them in the stack runs."""
_THREAD_LABEL = re.compile(r'Thread \d+ "(.*)"', re.DOTALL)


def printable(text: str, also: str = "") -> str:
    """`text` with everything that has no glyph, backslashes and the characters in `also` escaped as Python would.

    The result can be turned back, contains no control character, and no character of `also`.
    """
    if text.isascii() and text.isprintable() and "\\" not in text and not any(c in text for c in also):
        return text
    return "".join(_escape(char) if _must_escape(char, also) else char for char in text)


def frame_label(frame: Frame) -> str:
    """`function (file:line)`, without what is not known."""
    if not frame.file:
        return frame.function
    place = f"{frame.file}:{frame.line}" if frame.line else frame.file
    return f"{frame.function} ({place})"


def route_of(function: str, file: str) -> str | None:
    """The route that a frame says the code above it runs for; None of any other frame."""
    if file.endswith(ROUTE_FILE) and function.startswith(ROUTE_PREFIX):
        return function.removeprefix(ROUTE_PREFIX)
    return None


def thread_label(thread: Thread) -> str:
    """`Thread 7782 "busy-one"`: py-spy's form, so that one reader serves both."""
    return f'Thread {thread.native_id} "{thread.name}"' if thread.name else f"Thread {thread.native_id}"


def thread_name(label: str, native_id: int = 0) -> str:
    """The name alone, of a name or of a `thread_label`; the number where there is no name."""
    found = _THREAD_LABEL.fullmatch(label)
    return printable(found[1] if found else label) or f"thread {native_id}"


def _must_escape(char: str, also: str) -> bool:
    return char == "\\" or char in also or unicodedata.category(char) in _UNSAFE


def _escape(char: str) -> str:
    if char in "\\\n\r\t":
        return {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}[char]
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
