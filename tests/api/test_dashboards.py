"""The dashboards that are shipped: what they ask is what the agent answers, and every Grafana that they are for can load them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sentinel_agent.api.querier import TYPES
from sentinel_agent.api.selector import parse
from tests import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "grafana"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
SDKS = ROOT / ".cache" / "web" / "grafana-sdk"
GRAFANAS = ("10.1.0", "10.4.0", "11.0.0", "11.6.0")
LABELS = {
    "dump_id",
    "rule",
    "service_name",
    "instance",
    "worker",
    "pid",
    "summary",
    "reason",
    "metric",
    "phase",
    "source",
}

_LOAD = """
import json, sys
from grafana_foundation_sdk.models import dashboard, grafanapyroscope
document = json.load(open(sys.argv[1]))
loaded = dashboard.Dashboard.from_json(document)
assert loaded.uid == document["uid"] and len(loaded.panels) == len(document["panels"])
known = vars(grafanapyroscope.Dataquery.from_json({})).keys() | {"refId", "profileTypeId", "labelSelector", "groupBy", "queryType", "datasource"}
for panel in document["panels"]:
    for target in panel["targets"]:
        if "profileTypeId" in target:
            query = grafanapyroscope.Dataquery.from_json(target)
            assert (query.profile_type_id, query.label_selector, query.group_by) == (target["profileTypeId"], target["labelSelector"], target["groupBy"])
            assert target.keys() <= known, target.keys() - known
print("loaded")
"""


def targets(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in document["panels"]:
        yield from panel["targets"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_queries_are_answered(path: Path) -> None:
    """Types, labels and selectors are the agent's, variables are declared, panels do not overlap, nothing names one installation."""
    document = json.loads(path.read_text())
    variables = {each["name"] for each in document["templating"]["list"]}
    text = path.read_text()
    assert set(re.findall(r"\$\{?([a-z]+)\}?", text)) <= variables
    assert "http:" not in text
    for target in targets(document):
        if "profileTypeId" in target:
            assert target["profileTypeId"] in TYPES
            assert set(target["groupBy"]) <= LABELS
            assert {
                each.label for each in parse(re.sub(r"\$[a-z]+", "x", target["labelSelector"])).matchers
            } <= LABELS
        else:
            assert re.search(r"sentinel_(target|incident|self|http)", target["expr"])
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        box = panel["gridPos"]
        cells = {
            (x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])
        }
        assert not cells & taken
        assert box["x"] + box["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])


def test_there_are_three_and_they_link_to_each_other() -> None:
    """Every link leads to a dashboard of the set."""
    documents = [json.loads(path.read_text()) for path in DASHBOARDS]
    uids = {document["uid"] for document in documents}
    assert uids == {"sentinel-overview", "sentinel-incident", "sentinel-fleet"}
    for document in documents:
        assert {each["url"].removeprefix("/d/") for each in document["links"]} == uids


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("provisioning/*/*.yaml")), ids=lambda path: path.parent.name
)
def test_provisioning_is_yaml_of_version_one(path: Path) -> None:
    """Its data sources are of the types that the dashboards choose from."""
    document = yaml.safe_load(path.read_text())
    assert document["apiVersion"] == 1
    for source in document.get("datasources", ()):
        assert source["type"] in {"grafana-pyroscope-datasource", "prometheus"}


@pytest.mark.parametrize("version", GRAFANAS)
@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafanas_own_types_load_it(path: Path, version: str) -> None:
    """The foundation SDK of that version reads the dashboard and knows every key of its queries."""
    folder = SDKS / version
    if not folder.is_dir():
        needs.missing(f"grafana-foundation-sdk {version} is not in {folder.name}; `make unit` installs it")
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(folder)},
        check=False,
    )
    assert done.stdout == "loaded\n", done.stderr[-2000:]
