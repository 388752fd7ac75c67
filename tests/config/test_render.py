"""`config print`, `config schema` and the reference: one truth in several forms."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.config.decode import Decoder
from sentinel_agent.config.document import parse_document, resolve
from sentinel_agent.config.hints import write
from sentinel_agent.config.load import ConfigInputs, Loaded, load
from sentinel_agent.config.render import redact, to_document, to_yaml
from sentinel_agent.config.schema import json_schema, reference, settings_table
from sentinel_agent.config.settings import Settings
from sentinel_agent.core.rule import Rule
from sentinel_agent.core.units import parse_duration, parse_size

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"
CONFIG = """\
data_dir: "on"
limits: {memory: 1500, cpu_cores: 1.5}
sampler: {interval: 1.23456, history: 20m}
store: {max_bytes: 64MiB}
rule_packs: []
rules:
- {name: x, metric: cpu, trigger: {diff: 20.5, min: 1}, hold: 90, match: {service: "a: [b]#"},
   capture: [stacks, {kind: profile, duration: 5, max_bytes: 65536, pause: true}], limit: {count: 3, per: 2h}}
- {name: y, trigger: "cpu > 1.0 && true != false", description: "yes\\n\\u2028 — 'no'", enabled: false}
"""


def read(path: Path, text: str) -> Loaded:
    path.write_text(text)
    return load(ConfigInputs(files=(path,), environment={"SENTINEL_LOG_LEVEL": "debug"}))


def test_yaml_says_each_source(tmp_path: Path) -> None:
    """Behind every value stands where it is from, and durations and sizes are written for people."""
    text = to_yaml(read(tmp_path / "c.yaml", CONFIG))
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert f"history: 20m # {tmp_path}/c.yaml:3" in lines
    assert "interval: 1.23456 # " + f"{tmp_path}/c.yaml:3" in lines
    assert "max_bytes: 64MiB # " + f"{tmp_path}/c.yaml:4" in lines
    assert "level: debug # environment SENTINEL_LOG_LEVEL" in lines
    assert "max_age: 30d # default" in lines
    assert f"- name: x # {tmp_path}/c.yaml:7" in lines


def test_yaml_reads_back(tmp_path: Path) -> None:
    """What is printed can be loaded and is the same configuration."""
    first = read(tmp_path / "c.yaml", CONFIG)
    second = read(tmp_path / "d.yaml", to_yaml(first))
    assert second.settings == first.settings
    assert [item.rule for item in second.rules] == [item.rule for item in first.rules]


@given(
    st.text().filter(lambda text: not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text))
    | st.sampled_from(["1e3", "0o17"])
)
def test_any_text_reads_back(text: str) -> None:
    """Text is quoted where it must be, so that it stays text."""
    loaded = load(ConfigInputs(overrides={"rule_packs": (), "target.match": "x"}))
    target = msgspec.structs.replace(loaded.settings.target, match=text)
    printed = to_yaml(
        dataclasses.replace(loaded, settings=msgspec.structs.replace(loaded.settings, target=target))
    )
    found = parse_document("c.yaml", printed.encode())
    assert found.faults == []
    assert found.data["target"]["match"] == redact(text)


def test_no_rules() -> None:
    """Without rules the printed list is empty, not missing."""
    assert "rules: []" in to_yaml(load(ConfigInputs(overrides={"rule_packs": ()})))


def test_document_is_json(tmp_path: Path) -> None:
    """The form for programs is JSON with plain numbers and a source for every setting."""
    document = json.loads(json.dumps(to_document(read(tmp_path / "c.yaml", CONFIG))))
    assert document["settings"]["sampler"]["history"] == 1200.0
    assert document["sources"]["sampler.history"] == f"{tmp_path}/c.yaml:3"
    assert [item["source"] for item in document["rules"]] == [f"{tmp_path}/c.yaml:7", f"{tmp_path}/c.yaml:9"]


def test_secrets_are_hidden() -> None:
    """A value is hidden when its key or a key around it is a secret's, and a password in any URL."""
    document = {
        "api": {"token": "abc", "url": "postgres://me:pw@host/db", "port": 5, "password": ""},
        "secrets": ["a", "b"],
    }
    assert redact(document) == {
        "api": {"token": "<redacted>", "url": "postgres://<redacted>@host/db", "port": 5, "password": ""},
        "secrets": ["<redacted>", "<redacted>"],
    }


def test_secrets_are_hidden_when_printed() -> None:
    """Neither form of `config print` shows a password."""
    loaded = load(ConfigInputs(overrides={"rule_packs": (), "data_dir": "s3://user:hunter2@bucket"}))
    assert "hunter2" not in to_yaml(loaded)
    assert "hunter2" not in json.dumps(to_document(loaded))


@given(st.floats(0, 1e9) | st.integers(0, 10**9))
def test_written_duration_is_exact(seconds: float) -> None:
    """The written form of a duration reads back as the same number."""
    value = resolve(write(seconds, "duration"))
    assert (parse_duration(value) if isinstance(value, str) else value) == seconds


@given(st.integers(0, 2**63))
def test_written_size_is_exact(count: int) -> None:
    """The written form of a size reads back as the same number."""
    value = resolve(write(count, "bytes"))
    assert (parse_size(value) if isinstance(value, str) else value) == count


# --- schema ----------------------------------------------------------------------------------------------------


def schema_accepts(document: object) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(document)


def loader_accepts(document: object) -> bool:
    decoder = Decoder(lambda _: "")
    return decoder.decode(Settings, document) is not None


def test_schema_is_a_schema() -> None:
    """The schema itself is valid draft 2020-12, and every setting has a description in it."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert all(setting.description for setting in settings_table())
    assert schema["$defs"]["SamplerSettings"]["properties"]["interval"]["description"]


@pytest.mark.parametrize(
    ("section", "value", "good"),
    [
        ("sampler", {"interval": "500ms"}, True),
        ("sampler", {"interval": 0.5}, True),
        ("sampler", {"interval": "fast"}, False),
        ("sampler", {"interval": 0}, False),
        ("sampler", {"intervall": 1}, False),
        ("limits", {"memory": "64MiB"}, True),
        ("limits", {"memory": -1}, False),
        ("target", {"match": None}, True),
        ("target", {"match": 5}, False),
        ("log", {"level": "loud"}, False),
        ("rules", [{"name": "a", "trigger": "cpu > 1.0"}], True),
        (
            "rules",
            [{"name": "a", "trigger": {"abs": 1}, "capture": ["stacks", {"kind": "x", "duration": "5s"}]}],
            True,
        ),
        ("rules", [{"name": "a", "trigger": {"abs": 1}, "capture": ["../x"]}], False),
        ("rules", [{"name": "a"}], False),
        ("rule_files", ["a"] * 101, False),
    ],
)
def test_schema_agrees_with_the_loader(section: str, value: object, good: bool) -> None:
    """The schema accepts what the loader accepts."""
    assert loader_accepts({section: value}) is good
    assert schema_accepts({section: value}) is good


amounts = (
    st.floats(0.1, 60).filter(lambda value: not value.is_integer())  # to a schema 1.0 is the integer 1
    | st.integers(-5, 10**6)
    | st.from_regex(r"[0-9]{1,3}(\.[0-9])?(ms|s|m|KiB|B|x)?", fullmatch=True)
)


@given(amounts)
def test_schema_agrees_on_written_forms(value: object) -> None:
    """Where a number has no upper bound, schema and loader agree on every written form."""
    for document in (
        {"store": {"min_free_bytes": value}},
        {"rules": [{"name": "a", "trigger": "x", "hold": value}]},
    ):
        assert schema_accepts(document) == loader_accepts(document)


# --- docs ------------------------------------------------------------------------------------------------------


def test_reference_is_current() -> None:
    """The table in the docs is the one that the types give."""
    assert reference() in DOCS.read_text()


def test_every_rule_key_is_documented() -> None:
    """Each key of a rule stands in the docs."""
    text = DOCS.read_text()
    missing = [name for name in Rule.__struct_fields__ if f"`{name}`" not in text]
    assert missing == []


def docs_examples() -> list[Any]:
    return [part.split("```")[0] for part in DOCS.read_text().split("```yaml\n")[1:]]


def test_examples_load(tmp_path: Path) -> None:
    """Every example in the docs loads."""
    examples = docs_examples()
    assert examples
    for text in examples:
        (tmp_path / "c.yaml").write_text(text)
        load(ConfigInputs(files=(tmp_path / "c.yaml",)))
