"""What a walk asks for lies so that a frame over the end of a page can be read."""

from __future__ import annotations

import struct

from sentinel_agent.cpython.layouts import layout_of
from sentinel_agent.cpython.memory import Buffer, ImageMemory
from sentinel_agent.cpython.snapshot import ChunkFormat, Gatherer

PAGE = 4096
THREAD, PAGES = 0x10000, (0x20, 0x30, 0x31, 0x32, 0x40)


def test_pages_side_by_side_stay_so_when_one_of_them_tells_the_leaf() -> None:
    """The page with the C frame that names the leaf is read first, and with it those that it borders on, on both sides."""
    form = ChunkFormat(layout_of(12))
    state = bytearray(form.state.size + 8)
    struct.pack_into("<Q", state, layout_of(12).thread.cframe, 0x31 * PAGE + 64)
    image = {THREAD: bytes(state)} | {page * PAGE: bytes(PAGE) for page in PAGES}
    gatherer = Gatherer(ImageMemory(image), Buffer(), form, THREAD)
    gatherer.meet(list(PAGES))
    assert gatherer.take() is not None
    snapshot = gatherer.take()
    assert snapshot is not None
    plan = snapshot.plan
    assert set(plan.pages) == set(PAGES)
    assert plan.pages[0x31] < plan.core <= plan.pages[0x20]
    for page in (0x31, 0x32):
        assert snapshot.in_pages(page * PAGE - 8, 64) == plan.pages[page] - 8
    assert snapshot.in_pages(0x33 * PAGE - 8, 64) < 0
