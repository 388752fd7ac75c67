"""The `exporters:` section: checked by each exporter's own options, all faults at once, secrets hidden."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import jsonschema
import pytest
import yaml
from msgspec import Meta

from sentinel_agent.config import decode, schema
from sentinel_agent.config.load import ConfigInputs, load
from sentinel_agent.config.render import to_document, to_yaml
from sentinel_agent.config.schema import json_schema
from sentinel_agent.errors import ConfigError, OperatorError
from sentinel_agent.export.base import ExporterOptions, Secret, Signal
from sentinel_agent.export.registry import revealed

if TYPE_CHECKING:
    from pathlib import Path


class Options(ExporterOptions, frozen=True, kw_only=True):
    """Of an exporter that is made up."""

    url: Annotated[str, Meta(pattern="^https?://")]
    token: Secret | None = None
    headers: dict[str, Secret] = {}  # noqa: RUF012 - msgspec copies it
    size: Annotated[int, Meta(ge=1)] = 5


class Wire:
    Options: ClassVar[type[ExporterOptions]] = Options
    signals: ClassVar[tuple[Signal, ...]] = ("spans",)


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (decode, schema):
        monkeypatch.setattr(module, "installed", lambda: {"wire": Wire})


def read(tmp_path: Path, *texts: str) -> Any:
    files = []
    for number, text in enumerate(texts):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text)
    return load(ConfigInputs(files=tuple(files), overrides={"rule_packs": []}))


def test_an_entry_is_read_as_its_kind_has_it(tmp_path: Path) -> None:
    """The kind is the entry's name unless `kind` names another; durations and sizes have their written forms."""
    loaded = read(
        tmp_path,
        "exporters:\n  wire: {url: 'http://a'}\n"
        "  second: {kind: wire, url: 'http://b', interval: 5s, spool_bytes: 1MiB, signals: [spans], headers: {X-Key: k}}\n",
    )
    assert loaded.settings.exporters == {
        "wire": Options(url="http://a"),
        "second": Options(
            kind="wire",
            url="http://b",
            interval=5.0,
            spool_bytes=2**20,
            signals=("spans",),
            headers={"X-Key": "k"},
        ),
    }


def test_every_fault_is_told_with_its_line(tmp_path: Path) -> None:
    """An unknown kind, a missing key, a wrong value, a key too many and a name that is none: five faults, five places."""
    with pytest.raises(ConfigError) as raised:
        read(
            tmp_path,
            "exporters:\n  wire: {}\n  two:\n    kind: wyre\n  three:\n    kind: wire\n    url: ftp://x\n"
            "    sise: 3\n    size: 0\n  a/b: {kind: wire}\n  four: 5\n",
        )
    found = {(fault.path, fault.where.rpartition(":")[2]): fault.message for fault in raised.value.faults}
    assert found["exporters.wire.url", "2"].startswith("missing")
    assert "did you mean `wire`" in found["exporters.two.kind", "4"]
    assert ("exporters.three.url", "7") in found
    assert "did you mean `size`" in found["exporters.three.sise", "8"]
    assert ("exporters.three.size", "9") in found
    assert any("a name of letters" in message for message in found.values())
    assert ("exporters.four", "11") in found
    assert len(found) == 7


def test_a_later_file_replaces_an_entry_and_keeps_the_others(tmp_path: Path) -> None:
    """As with rules: by name, the whole entry."""
    loaded = read(
        tmp_path,
        "exporters:\n  wire: {url: 'http://a', size: 9}\n  two: {kind: wire, url: 'http://b'}\n",
        "exporters:\n  wire: {url: 'http://c'}\n",
    )
    assert [options.url for options in loaded.settings.exporters.values()] == ["http://c", "http://b"]
    assert loaded.settings.exporters["wire"].size == 5
    assert loaded.sources["exporters.wire"].endswith("1.yaml:2")


def test_secrets_are_hidden_and_references_shown(tmp_path: Path) -> None:
    """No form of `config print` has a token, a header or the password of a URL; where a secret is read from may be seen."""
    loaded = read(
        tmp_path,
        "exporters:\n  wire: {url: 'http://user:hunter2@a', token: tok-123, headers: {X-Key: k-456, Other: 'env:OTHER'}}\n",
    )
    for text in (to_yaml(loaded), json.dumps(to_document(loaded))):
        for secret in ("hunter2", "tok-123", "k-456"):
            assert secret not in text
        assert "env:OTHER" in text
    shown = yaml.safe_load(to_yaml(loaded))["exporters"]["wire"]
    assert shown["headers"]["Other"] == "env:OTHER"


def test_what_is_printed_reads_back(tmp_path: Path) -> None:
    """`config print` of a configuration without secrets is that configuration."""
    text = "exporters:\n  wire: {url: 'http://a', interval: 90s, headers: {A: 'env:B'}}\n  plain: {kind: wire, url: 'https://b'}\n"
    first = read(tmp_path, text)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(first))
    assert load(ConfigInputs(files=(again,))).settings.exporters == first.settings.exporters


def test_the_schema_knows_the_installed_kinds() -> None:
    """An editor completes an exporter's keys and marks a wrong one."""
    checker = jsonschema.Draft202012Validator(json_schema())
    good = {"exporters": {"wire": {"url": "http://a", "interval": "5s"}}}
    assert list(checker.iter_errors(good)) == []
    assert list(checker.iter_errors({"exporters": {"wire": {"url": "http://a", "sise": 1}}}))


def test_a_secret_is_read_from_where_it_is(tmp_path: Path) -> None:
    """From a variable or a file, without its line end; one that is not there is named, never its value."""
    (tmp_path / "token").write_text("from-file\n")
    options = Options(url="http://a", token=f"file:{tmp_path}/token", headers={"A": "env:A", "B": "plain"})
    found = revealed(options, {"A": "from-env"})
    assert isinstance(found, Options)
    assert found.token == "from-file"
    assert found.headers == {"A": "from-env", "B": "plain"}
    with pytest.raises(OperatorError, match=r"headers\.A: the environment has no variable A"):
        revealed(options, {})
    with pytest.raises(OperatorError, match=r"token: .*cannot be read"):
        revealed(Options(url="http://a", token="file:/nonexistent/x"), {})
