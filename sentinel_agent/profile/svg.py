"""A static flame graph: one self-contained SVG, no scripts, no fonts or images from elsewhere.

Idea and layout: Brendan Gregg, "The Flame Graph", CACM 59(6), 2016. Width is cost, root at the bottom row's
place turned upside down (icicle), so that a deep stack grows down the page. Frames are told apart by function, not
by line. What is too narrow to see is left out, and the caption says so.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

from sentinel_agent.core.units import format_duration, format_size
from sentinel_agent.profile.names import printable, thread_label
from sentinel_agent.profile.views import merged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sentinel_agent.profile.heap import HeapSite
    from sentinel_agent.profile.record import ProfileRecord

_WIDTH = 1200.0
_ROW = 17
_TOP = 40
_MARGIN = 8.0
_CHAR = 6.7  # px, advance of the 11 px monospace font
_MIN_WIDTH = 0.4  # px
_MAX_BOXES = 20_000

# Fills are light enough for dark text on either background; only the caption changes with the colour scheme.
_STYLE = (
    "text{font:11px ui-monospace,Menlo,Consolas,monospace;fill:#1a1a1a}"
    ".c{fill:#1a1a1a;font-size:13px}"
    "rect{stroke:#fff;stroke-width:.5}"
    "@media(prefers-color-scheme:dark){.c{fill:#e6e6e6}rect{stroke:#111}}"
)


@dataclass(slots=True)
class _Node:
    """A function at one place of the tree; `cost` includes its callees."""

    name: str
    file: str
    cost: float = 0.0
    children: dict[tuple[str, str], _Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Box:
    node: _Node
    depth: int
    left: float
    width: float


def encode(record: ProfileRecord, *, title: str = "Flame graph") -> bytes:
    """The same record and title give the same bytes, at most some megabytes."""
    timed = record.seconds > 0
    amount = format_duration if timed else _samples
    root = _tree(record, timed=timed)
    return _picture(root, amount, title, f", {len(record.threads)} threads")


def encode_heap(sites: Sequence[HeapSite], *, title: str) -> bytes:
    """What each place holds, in bytes; as `encode`."""
    root = _Node("all", "")
    for site in sites:
        path = [(line.function or f"{line.file}:{line.line}", line.file) for line in reversed(site.lines)]
        _add(root, path, float(site.held_bytes))
    return _picture(root, format_size, title, "")


def _picture(root: _Node, amount: Callable[[float], str], title: str, more: str) -> bytes:
    boxes = list(_layout(root))
    left_out = 0
    if len(boxes) > _MAX_BOXES:
        # A parent is never narrower than its child and comes first among equals, so no box loses its parent.
        boxes.sort(key=lambda box: (-box.width, box.depth))
        left_out = len(boxes) - _MAX_BOXES
        del boxes[_MAX_BOXES:]
    height = _TOP + _ROW * (1 + max((box.depth for box in boxes), default=0)) + 8
    caption = f"{title}: {amount(root.cost)}{more}"
    if left_out:
        caption += f", {left_out} narrow frames left out"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height}" width="{_WIDTH:.0f}" '
        f'height="{height}" role="img"><title>{_text(title)}</title><style>{_STYLE}</style>',
        f'<text class="c" x="{_MARGIN:.0f}" y="22">{_text(caption)}</text>',
        *(_draw(box, root.cost, amount) for box in boxes),
        "</svg>\n",
    ]
    return "".join(parts).encode("utf-8")


def _tree(record: ProfileRecord, *, timed: bool) -> _Node:
    root = _Node("all", "")
    for sample in merged(record).samples:
        cost = sample.weight if timed else float(sample.count)
        path = [(thread_label(record.threads[sample.thread]), "")]
        path += [(record.frames[i].function, record.frames[i].file) for i in reversed(sample.stack)]
        _add(root, path, cost)
    return root


def _add(root: _Node, path: Sequence[tuple[str, str]], cost: float) -> None:
    """`path` is of functions and their files, outermost first."""
    root.cost += cost
    node = root
    for name, file in path:
        node = node.children.setdefault((name, file), _Node(name, file))
        node.cost += cost


def _layout(root: _Node) -> Iterator[_Box]:
    """Boxes wide enough to see, parents before children; a stack of its own, for trees are as deep as the target likes."""
    if root.cost <= 0:
        return
    scale = (_WIDTH - 2 * _MARGIN) / root.cost
    todo = [_Box(root, 0, _MARGIN, root.cost * scale)]
    while todo:
        box = todo.pop()
        yield box
        left = box.left
        for _, child in sorted(box.node.children.items()):
            width = child.cost * scale
            if width >= _MIN_WIDTH:
                todo.append(_Box(child, box.depth + 1, left, width))
            left += width


def _draw(box: _Box, whole: float, amount: Callable[[float], str]) -> str:
    node = box.node
    top = _TOP + _ROW * box.depth
    place = f" ({node.file})" if node.file else ""
    tip = f"{node.name}{place}: {amount(node.cost)}, {100 * node.cost / whole:.1f} %"
    label = _fit(printable(node.name), box.width - 6)
    words = f'<text x="{box.left + 3:.1f}" y="{top + 12}">{_text(label)}</text>' if label else ""
    return (
        f'<g><title>{_text(tip)}</title><rect x="{box.left:.1f}" y="{top}" width="{box.width:.1f}" '
        f'height="{_ROW - 1}" rx="1" fill="{_colour(node)}"/>{words}</g>'
    )


def _samples(cost: float) -> str:
    return f"{cost:.0f} samples"


def _text(text: str) -> str:
    return escape(printable(text))


def _fit(text: str, width: float) -> str:
    """As much of `text` as fits, with an ellipsis; nothing if that would be under three characters."""
    room = int(width / _CHAR)
    if room < 3:
        return ""
    used = 0
    for at, char in enumerate(text):
        used += 2 if east_asian_width(char) in "WF" else 1
        if used > room:
            return text[: max(at - 1, 1)] + "…"
    return text


def _colour(node: _Node) -> str:
    """The same function has the same warm colour in every graph."""
    seed = zlib.crc32(f"{node.name}\0{node.file}".encode())
    return f"hsl({seed % 50 + 8},{65 + seed // 64 % 25}%,{64 + seed // 2048 % 12}%)"
