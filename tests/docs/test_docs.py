"""What the documents say about the program is so."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from sentinel_agent.cli import _VERBS
from sentinel_agent.config.decode import Decoder
from sentinel_agent.core.metrics import METRICS
from sentinel_agent.core.rule import RuleFile
from tools.draw_states import PAGE, page

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_the_page_of_states_is_drawn_from_the_table() -> None:
    """After a change of the table, `python tools/draw_states.py` makes it current."""
    assert PAGE.read_text() == page()


def test_the_rules_in_the_readme_are_valid() -> None:
    """A reader may paste them."""
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    decoder = Decoder(lambda _: "README.md")
    found = decoder.decode(RuleFile, yaml.safe_load(example))
    assert decoder.faults == []
    assert found is not None
    assert len(found.rules) == 2


def test_the_readme_names_every_metric_that_is_read_and_every_verb() -> None:
    """Nothing that works is kept secret, and nothing planned is promised as a metric."""
    (listed,) = re.findall(r"^Metrics: (.*?)\. A rule", README, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", listed)) == {m.name for m in METRICS.values() if not m.planned}
    for verb in _VERBS:
        assert re.search(rf"`(sentinel-agent )?{verb}\b|sentinel-agent {verb}\b", README), verb


def test_every_link_leads_somewhere() -> None:
    """Relative links in the documents name files that are there."""
    for page_path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page_path.read_text()):
            assert (page_path.parent / target).exists(), (page_path.name, target)
