"""What the documents say about the program is so."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import yaml

from sentinel_agent.cli import _VERBS
from sentinel_agent.config.decode import Decoder
from sentinel_agent.config.schema import written
from sentinel_agent.config.settings import Settings
from sentinel_agent.core.metrics import METRICS
from sentinel_agent.core.rule import RuleFile
from sentinel_agent.export.base import ExporterOptions
from sentinel_agent.export.registry import installed
from sentinel_agent.proxy import flags
from sentinel_agent.proxy.config import parse_proxy
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
    """Nothing that works is kept secret, and nothing else is promised."""
    (listed,) = re.findall(r"^Metrics: (.*?)\. A rule", README, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", listed)) == METRICS.keys()
    for verb in _VERBS:
        assert re.search(rf"`(sentinel-agent )?{verb}\b|sentinel-agent {verb}\b", README), verb


def test_every_link_leads_somewhere() -> None:
    """Relative links in the documents name files that are there."""
    for page_path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page_path.read_text()):
            assert (page_path.parent / target).exists(), (page_path.name, target)


def test_the_exporters_page_can_be_pasted() -> None:
    """Every example is valid, every option that all exporters have is in the table with its default, every kind has a part."""
    page_text = (ROOT / "docs" / "exporters.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", page_text, re.DOTALL)
    assert len(examples) == 8
    for example in examples:
        decoder = Decoder(lambda _: "docs/exporters.md")
        assert decoder.decode(Settings, yaml.safe_load(example)) is not None, decoder.faults
    for kind in installed():
        assert f"\n## {kind}\n" in page_text
        assert f"| `{kind}` |" in page_text
    table = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", page_text, re.MULTILINE))
    for field in msgspec.structs.fields(ExporterOptions):
        if field.name not in ("kind", "signals"):
            assert table[field.name] == written(field.type, field.default), field.name


def test_the_proxys_page_is_so() -> None:
    """Its examples are sound configurations or parts of one, and its table has every flag with the status that it gives."""
    text = (ROOT / "docs" / "proxy.md").read_text()
    example, *parts = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(parse_proxy("proxy.md", example.encode()).listeners) == 2
    for part in parts:
        found = yaml.safe_load(part)
        used = found.pop("filters", [])
        routes = found.pop("routes", [{"name": "all", "cluster": "api", "filters": used}])
        listener = {"name": "web", "address": "127.0.0.1:8080", "routes": routes}
        names = {"api"} | {each["config"]["cluster"] for each in used if "cluster" in each.get("config", {})}
        clusters = [{"name": name, "endpoints": [{"address": "127.0.0.1:9000"}]} for name in names]
        whole = {"listeners": [listener], "clusters": clusters, **found}
        assert parse_proxy("proxy.md", yaml.safe_dump(whole).encode()).clusters
    listed = dict(re.findall(r"^\| ([A-Z]+) \| ([^|]*) \|", text, re.MULTILINE))
    known = [flag for flag in vars(flags).values() if isinstance(flag, flags.Flag)]
    assert set(listed) == {flag.code for flag in known}
    for flag in known:
        assert str(flag.status) in listed[flag.code] or flag is flags.FILTERED, flag.code
