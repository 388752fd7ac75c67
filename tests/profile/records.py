"""Made-up records for the tests: hypothesis strategies with names as hostile as a target can make them."""

from __future__ import annotations

from hypothesis import strategies as st

from sentinel_agent.profile.record import ProfileRecord, RecordBuilder

HOSTILE = (
    "",
    "\0",
    "a;b",
    "two\nlines\r\x85\u2028",
    "<script>alert(1)</script>",
    "]]>&amp;\"'",
    "\u202egnp.exe",
    "\x1b[2J\x07",
    "\ud800",
    "ok \udcff",
    "back\\slash\\x3b",
    "x" * 100_000,
    "名" * 5000,
)

names = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=()), max_size=20))
integers = st.integers(min_value=-(2**70), max_value=2**70)


@st.composite
def records(draw: st.DrawFn, *, uniform_state: bool = False) -> ProfileRecord:
    """A record whose samples of one thread do not overlap, with times in whole nanoseconds under an hour."""
    builder = RecordBuilder(
        start=draw(st.integers(0, 2_000_000_000)),
        period=draw(st.sampled_from([0.0, 0.01, 1 / 19])),
        source=draw(names),
        lost=draw(st.integers(0, 1000)),
    )
    frames = [
        builder.frame(*item)
        for item in draw(st.lists(st.tuples(names, names, integers), min_size=1, max_size=6))
    ]
    state = (
        st.just(draw(st.sampled_from([True, None])))
        if uniform_state
        else st.sampled_from([True, False, None])
    )
    for native_id, name in draw(
        st.lists(st.tuples(st.integers(1, 2**62), names), max_size=3, unique_by=lambda item: item[0])
    ):
        thread = builder.thread(native_id, name)
        now = 0
        for gap, weight in draw(
            st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=6)
        ):
            now += gap if gap >= 2000 else 0
            builder.add(
                thread,
                draw(st.lists(st.sampled_from(frames), min_size=1, max_size=8)),
                offset=now / 1e9,
                weight=weight / 1e9,
                on_cpu=draw(state),
            )
            now += weight
    return builder.build()
