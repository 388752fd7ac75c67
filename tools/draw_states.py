"""Draws `docs/rule-states.md` from the table in `sentinel_agent/core/state.py`: `python tools/draw_states.py`."""

from __future__ import annotations

from pathlib import Path

from sentinel_agent.core.state import EVENTS, STATES, TRANSITIONS

PAGE = Path(__file__).parent.parent / "docs" / "rule-states.md"


def page() -> str:
    """The whole page as Markdown with a Mermaid diagram."""
    arrows = [
        f"    {before} --> {after}: {event}"
        for (before, event), after in TRANSITIONS.items()
        if before != after
    ]
    return "\n".join(
        [
            "# States of a rule",
            "",
            "One rule on one role. Drawn by `tools/draw_states.py` from the table that the agent runs on.",
            "",
            "```mermaid",
            "stateDiagram-v2",
            *arrows,
            "```",
            "",
            "| state | meaning |",
            "|---|---|",
            *(f"| `{state}` | {meaning} |" for state, meaning in STATES.items()),
            "",
            "| event | when |",
            "|---|---|",
            *(f"| `{event}` | {meaning} |" for event, meaning in EVENTS.items()),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
