"""Whether a torn stack is read again follows from what that has brought."""

from __future__ import annotations

from sentinel_agent.cpython.frames import Patience


def asked(patience: Patience, times: int, *, helped: bool) -> int:
    """How often it would try again out of so many torn stacks, each try ending alike."""
    tries = 0
    for _ in range(times):
        if patience.again():
            patience.note(helped)
            tries += 1
    return tries


def test_tries_go_on_while_they_help() -> None:
    """A target whose torn stacks are whole at the next look gets that look every time."""
    assert asked(Patience(), 100, helped=True) == 100


def test_hopeless_tries_end_but_for_one_now_and_then() -> None:
    """Where another look never helps, after the first tries one in sixteen is left."""
    patience = Patience()
    assert asked(patience, 100, helped=False) < 25
    assert asked(patience, 160, helped=False) == 10


def test_a_target_that_comes_to_rest_gets_its_tries_back() -> None:
    """What helps again is soon done every time again."""
    patience = Patience()
    asked(patience, 100, helped=False)
    asked(patience, 16 * 12, helped=True)
    assert asked(patience, 10, helped=True) == 10
