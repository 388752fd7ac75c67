"""Loading from every source: precedence, the source of each value, and every fault of every file at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentinel_agent.config.environment import from_environment
from sentinel_agent.config.load import MAX_RULES, ConfigInputs, Loaded, attempt, load
from sentinel_agent.config.packs import installed_packs
from sentinel_agent.config.schema import settings_table
from sentinel_agent.config.settings import Settings
from sentinel_agent.errors import ConfigError, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def loaded(*files: Path, packs: dict[str, str] | None = None, **inputs: Any) -> Loaded:
    overrides = {"rule_packs": (), **inputs.pop("overrides", {})}
    return load(ConfigInputs(files=files, packs=packs or {}, overrides=overrides, **inputs))


def faults(*files: Path, **inputs: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(*files, **inputs)
    assert caught.value.exit_code == 2
    return [str(fault) for fault in caught.value.faults]


def test_defaults() -> None:
    """Without any source every value is the default and says so."""
    found = load(ConfigInputs(overrides={"rule_packs": ()}))
    assert found.settings == Settings(rule_packs=())
    assert set(found.sources.values()) == {"default", "command line"}
    assert set(found.sources) == {setting.name for setting in settings_table()}


def test_precedence(tmp_path: Path) -> None:
    """Default < first file < second file < environment < command line, key by key, each with its source."""
    first = write(tmp_path / "a.yaml", "sampler:\n  interval: 2s\n  history: 100s\nlog: {level: error}\n")
    second = write(
        tmp_path / "b.toml", '[sampler]\nhistory = "200s"\n[target]\nservice = "file"\ninstance = "file"\n'
    )
    found = loaded(
        first,
        second,
        environment={"SENTINEL_TARGET_SERVICE": "env", "SENTINEL_TARGET_INSTANCE": "env"},
        overrides={"target.instance": "cli", "log.format": None},
    )
    assert found.settings.sampler.ring_bytes == Settings().sampler.ring_bytes
    assert (found.settings.sampler.interval, found.settings.sampler.history) == (2.0, 200.0)
    assert (found.settings.target.service, found.settings.target.instance) == ("env", "cli")
    shown = {key: found.sources[key] for key in ("sampler.ring_bytes", "sampler.interval", "sampler.history")}
    assert shown == {
        "sampler.ring_bytes": "default",
        "sampler.interval": f"{first}:2",
        "sampler.history": str(second),
    }
    assert found.sources["target.service"] == "environment SENTINEL_TARGET_SERVICE"
    assert found.sources["target.instance"] == "command line"
    assert found.sources["log.format"] == "default"


def test_a_fault_that_a_higher_source_hides_is_still_one(tmp_path: Path) -> None:
    """Each source is checked by itself."""
    path = write(tmp_path / "a.yaml", "log: {level: loud}\n")
    (only,) = faults(path, environment={"SENTINEL_LOG_LEVEL": "info"})
    assert only.startswith(f"{path}:1: log.level: expected one of debug")


def test_all_faults_of_all_sources_at_once(tmp_path: Path) -> None:
    """Configuration, rule files, packs, environment and command line are reported together."""
    config = write(
        tmp_path / "a.yaml", "listen: 5\nlisten: 6\nrule_files: [r.yaml, gone.yaml]\nrule_packs: [defualt]\n"
    )
    write(tmp_path / "r.yaml", "rules:\n- {name: x, trigger: {abs: y}}\n- {name: x, metric: cpu}\n- text\n")
    with pytest.raises(ConfigError) as caught:
        load(
            ConfigInputs(
                files=(config, tmp_path),
                packs={"default": "sentinel_rules"},
                environment={"SENTINEL_SAMPLER_INTERVAL": "soon"},
                overrides={"sampler.hystory": "1m"},
            )
        )
    found = [str(fault).replace(str(tmp_path), "T") for fault in caught.value.faults]
    assert found == [
        "T/a.yaml:2: listen: given twice: first on line 1",
        "T/a.yaml:1: listen: expected HOST:PORT; found 5",
        "T: expected a file, found a directory",
        "environment SENTINEL_SAMPLER_INTERVAL: sampler.interval: expected a duration from 50ms to 1m; found the text 'soon'",
        "command line: sampler.hystory: unknown key: did you mean `sampler.history`?",
        "T/a.yaml:4: rule_packs: defualt: no such rule pack: did you mean `default`?",
        "T/r.yaml:2: rules[0].trigger.abs: expected a number; found the text 'y'",
        "T/r.yaml:3: rules[1].trigger: missing: expected a mapping or text, at most 1000 characters, not empty",
        "T/r.yaml:4: rules[2]: expected a mapping; found the text 'text'",
        "T/r.yaml:3: rules[1].name: the name 'x' is already that of rules[0]",
        "T/gone.yaml: cannot be read: No such file or directory",
    ]


RULE = "{{name: {0}, metric: cpu, trigger: {{abs: {1}}}}}"


def rules_text(*rules: tuple[str, int]) -> str:
    return "rules:\n" + "".join(f"- {RULE.format(*rule)}\n" for rule in rules)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an importable package, with a name that no other test uses."""
    folder = tmp_path / "site" / f"pack_{tmp_path.name}"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    sys.modules.pop(folder.name, None)


@pytest.fixture
def pack(package: Path) -> dict[str, str]:
    """An installed rule pack `mine` with two files."""
    write(package / "__init__.py", "")
    write(package / "b.yaml", rules_text(("a", 2)))
    write(package / "a.yaml", rules_text(("a", 1), ("pack-only", 1)))
    write(package / "notes.txt", "no rules")
    return {"mine": package.name}


def test_rule_precedence(tmp_path: Path, pack: dict[str, str]) -> None:
    """Packs < rule files of the settings < those of the command line < inline; the source and the replaced one are known."""
    config = write(
        tmp_path / "etc" / "c.yaml",
        "rule_packs: [mine]\nrule_files: [f.yaml]\n" + rules_text(("a", 5), ("inline", 1)),
    )
    in_settings = write(tmp_path / "etc" / "f.yaml", rules_text(("a", 3), ("f", 3)))
    by_option = write(tmp_path / "o.yaml", rules_text(("a", 4), ("f", 4)))
    found = load(ConfigInputs(files=(config,), rule_files=(by_option,), packs=pack))
    shown = {
        item.rule.name: (item.rule.thresholds()["abs"], item.source, item.replaces) for item in found.rules
    }
    assert shown == {
        "pack-only": (1.0, "pack mine/a.yaml:3", None),
        "f": (4.0, f"{by_option}:3", f"{in_settings}:3"),
        "a": (5.0, f"{config}:4", f"{by_option}:2"),
        "inline": (1.0, f"{config}:5", None),
    }
    assert set(found.files) == {config, in_settings, by_option}


def test_relative_rule_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule file is found from the configuration file's folder; from the environment, from the working folder."""
    config = write(tmp_path / "etc" / "c.yaml", "rule_files: [f.yaml]\n")
    write(tmp_path / "etc" / "f.yaml", rules_text(("etc", 1)))
    write(tmp_path / "f.yaml", rules_text(("here", 1)))
    monkeypatch.chdir(tmp_path)
    assert [item.rule.name for item in loaded(config).rules] == ["etc"]
    found = loaded(config, environment={"SENTINEL_RULE_FILES": "f.yaml, etc/f.yaml"})
    assert [item.rule.name for item in found.rules] == ["here", "etc"]


def test_inline_rules_of_two_files(tmp_path: Path) -> None:
    """Inline rules of several configuration files add up; a later one of the same name replaces the earlier."""
    first = write(tmp_path / "1.yaml", rules_text(("a", 1), ("b", 1)))
    second = write(tmp_path / "2.yaml", rules_text(("b", 2)))
    found = loaded(first, second)
    assert [(rule.name, rule.thresholds()["abs"]) for rule in found.settings.rules] == [
        ("a", 1.0),
        ("b", 2.0),
    ]
    assert {item.rule for item in found.rules} == set(found.settings.rules)


@pytest.mark.parametrize(
    ("init", "files", "words"),
    [
        ("raise SystemError('no')", {"a.yaml": "rules: []"}, "cannot be read: SystemError('no')"),
        ("", {}, "no *.yaml"),
        ("", {"a.yaml": "rules: []" + " " * 1024**2}, "expected at most"),
        ("", {"a.yaml": "rules: {}"}, "expected a list"),
    ],
)
def test_bad_packs(package: Path, init: str, files: dict[str, str], words: str) -> None:
    """A pack that raises, is empty, too large or wrong is a fault of that pack."""
    write(package / "__init__.py", init)
    for name, text in files.items():
        write(package / name, text)
    done = attempt(ConfigInputs(packs={"bad": package.name}, overrides={"rule_packs": "bad"}))
    (only,) = done.faults
    assert words in str(only)
    assert "bad" in str(only)


def test_too_many_rules(tmp_path: Path) -> None:
    """More rules than an agent can judge every second are refused."""
    path = write(tmp_path / "r.yaml", rules_text(*((f"r{number}", 1) for number in range(MAX_RULES + 1))))
    assert faults(rule_files=(path,)) == [f"rules: expected at most {MAX_RULES}, found {MAX_RULES + 1}"]


def test_baseline_longer_than_the_memory(tmp_path: Path) -> None:
    """A rule that compares with more than is remembered works, with a warning that says what it compares with."""
    text = "sampler: {history: 5m}\nrules:\n- {name: a, metric: cpu, trigger: {diff: 50}, baseline: {window: 10m}}\n"
    path = write(tmp_path / "c.yaml", text)
    (only,) = loaded(path).warnings
    assert (
        str(only)
        == f"{path}:3: a.baseline.window: 10m is longer than sampler.history: only 5m is compared with"
    )
    assert loaded(path, overrides={"sampler.history": "10m"}).warnings == ()


# --- environment -----------------------------------------------------------------------------------------------


def test_variables_are_unique() -> None:
    """No variable can mean two settings, so nothing is ambiguous however names are put together."""
    variables = [setting.variable for setting in settings_table()]
    assert len(set(variables)) == len(variables)


def test_variables() -> None:
    """Text becomes the setting's type; `_` in names needs no guessing; empty means not given."""
    found = loaded(
        environment={
            "SENTINEL_TARGET_MAX_TARGETS": "7",
            "SENTINEL_SAMPLER_INTERVAL": "2s",
            "SENTINEL_LISTEN": "[::1]:0",
            "SENTINEL_DATA_DIR": "/var/lib/x",
            "SENTINEL_TARGET_CHILDREN": "false",
            "SENTINEL_LIMITS_CPU_CORES": "1.5",
            "SENTINEL_STORE_MAX_BYTES": "1GiB",
            "SENTINEL_LOG_LEVEL": "",
            "SENTINEL_CONFIG": "x.yaml",
            "PATH": "/bin",
        }
    )
    made = found.settings
    assert (made.target.max_targets, made.sampler.interval, made.listen) == (7, 2.0, "[::1]:0")
    assert (made.data_dir, made.target.children, made.limits.cpu_cores) == ("/var/lib/x", False, 1.5)
    assert (made.store.max_bytes, made.log.level) == (1024**3, "info")
    assert found.warnings == ()


def test_unknown_variables() -> None:
    """A variable that no setting has is a warning; those that Kubernetes sets for a service are not even that."""
    variables = {
        "SENTINEL_SAMPLER_INTERVALL": "2s",
        "SENTINEL_RULES": "x",
        "SENTINEL_AGENT_SERVICE_HOST": "10.0.0.1",
        "SENTINEL_AGENT_SERVICE_PORT_HTTP": "9477",
        "SENTINEL_PORT": "tcp://10.0.0.1:9477",
        "SENTINEL_AGENT_PORT_9477_TCP_ADDR": "10.0.0.1",
    }
    shown = {warning.path: warning.message for warning in loaded(environment=variables).warnings}
    assert list(shown) == ["SENTINEL_RULES", "SENTINEL_SAMPLER_INTERVALL"]
    assert "did you mean `SENTINEL_SAMPLER_INTERVAL`?" in shown["SENTINEL_SAMPLER_INTERVALL"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SENTINEL_TARGET_CHILDREN", "maybe"),
        ("SENTINEL_LIMITS_CPU_CORES", "nan"),
        ("SENTINEL_LIMITS_CPU_CORES", "1e999"),
        ("SENTINEL_CAPTURE_CONCURRENCY", "2.5"),
        ("SENTINEL_STORE_MAX_INCIDENTS", "9" * 30),
        ("SENTINEL_TARGET_MATCH", "("),
        ("SENTINEL_DATA_DIR", "\udcff"),
        ("SENTINEL_LISTEN", "localhost"),
    ],
)
def test_bad_variables(name: str, text: str) -> None:
    """A variable with a wrong value is a fault that names the variable and the setting."""
    (only,) = faults(environment={name: text})
    assert only.startswith(f"environment {name}: {name.removeprefix('SENTINEL_').lower().split('_')[0]}")


@given(st.dictionaries(st.sampled_from([s.variable for s in settings_table()]), st.text()))
def test_any_environment(variables: dict[str, str]) -> None:
    """No environment makes the loader raise anything."""
    found: list[Fault] = []
    from_environment(variables, found, [])
    assert len(found) <= sum(
        text.count(",") + 1 for text in variables.values()
    )  # each word of a list may be wrong


# --- whatever the bytes ----------------------------------------------------------------------------------------

junk = st.binary(max_size=100) | st.sampled_from([b"rules", b"- name: a", b"sampler:\n  interval: 1s"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(junk, max_size=4).map(b"\n".join), st.sampled_from(["c.yaml", "c.toml"]))
def test_any_file(tmp_path: Path, content: bytes, name: str) -> None:
    """Whatever a file holds, the attempt ends with a configuration or with faults."""
    path = tmp_path / name
    path.write_bytes(content)
    done = attempt(ConfigInputs(files=(path,), rule_files=(path,), packs={}, overrides={"rule_packs": ()}))
    assert (done.loaded is None) == bool(done.faults)
    assert set(done.files) == {path}


def test_installed_default_pack() -> None:
    """The pack `default` is found by its entry point, as a stranger's would be."""
    assert installed_packs()["default"] == "sentinel_rules"
