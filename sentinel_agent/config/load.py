"""Settings and rules from everywhere they can come from, merged, with the source of each and every fault at once.

Settings, lowest first: defaults, configuration files in the order given, `SENTINEL_*` variables, the command line.
Each source is checked by itself, so a wrong value is a fault even where a higher source hides it.

Exporters come from configuration files only; an entry replaces the whole entry of the same name from before.

Rules, lowest first: packs, the rule files of the settings, those of the command line, the `rules:` of configuration
files. A rule replaces the whole rule of the same name from before; the same name twice in one file is a fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sentinel_agent.config.decode import MAX_FAULTS, Decoder
from sentinel_agent.config.document import Document, parse_document
from sentinel_agent.config.environment import from_environment, from_overrides
from sentinel_agent.config.files import fingerprint, read_file
from sentinel_agent.config.hints import Place, format_path, is_struct, write
from sentinel_agent.config.packs import installed_packs, read_pack
from sentinel_agent.config.schema import settings_table
from sentinel_agent.config.settings import Settings
from sentinel_agent.core.rule import Rule, RuleFile, Trigger
from sentinel_agent.errors import ConfigError, Fault, OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_RULES = 1000
S = TypeVar("S", bound=msgspec.Struct)

DEFAULT = "default"
"""The source of a value that nothing gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigInputs:
    """Where to load from. `packs` are the rule packs that exist (name -> import package); None: those installed."""

    files: tuple[Path, ...] = ()
    rule_files: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    packs: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class RuleWithSource:
    """A rule in force, where it stands (`rules.yaml:12`), and where the one stood that it replaced."""

    rule: Rule
    source: str
    replaces: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration without faults.

    `sources` says of every setting (`sampler.interval`) where its value is from; `files` is what was read: the
    fingerprint of each file's content.
    """

    settings: Settings
    rules: tuple[RuleWithSource, ...]
    sources: Mapping[str, str]
    warnings: tuple[Fault, ...]
    files: Mapping[Path, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of loading: the configuration, or its faults; and the files that were looked at either way."""

    loaded: Loaded | None
    faults: tuple[Fault, ...]
    files: Mapping[Path, str]


def load(inputs: ConfigInputs) -> Loaded:
    """The merged configuration.

    Raises:
        ConfigError: with every fault of every source.
    """
    done = attempt(inputs)
    if done.loaded is None:
        raise ConfigError(list(done.faults), hint="`sentinel-agent config schema` shows what can be written")
    return done.loaded


def attempt(inputs: ConfigInputs) -> Attempt:
    """The same, with the faults as data. Never raises."""
    return _Loading(inputs).run()


class _Loading:
    """One pass over every source."""

    def __init__(self, inputs: ConfigInputs) -> None:
        self._inputs = inputs
        self._faults: list[Fault] = []
        self._warnings: list[Fault] = []
        self._files: dict[Path, str] = {}
        self._leaves: dict[Place, Any] = {}
        self._sources = {setting.name: DEFAULT for setting in settings_table()}
        self._inline: list[tuple[Document, tuple[Rule, ...]]] = []
        self._rules: dict[str, RuleWithSource] = {}

    def run(self) -> Attempt:
        for path in self._inputs.files:
            self._config_file(path)
        self._take_text()
        settings = _assemble(Settings, self._leaves, ())
        self._all_rules(settings)
        if len(self._rules) > MAX_RULES:
            self._faults.append(Fault("rules", "", f"expected at most {MAX_RULES}, found {len(self._rules)}"))
        self._check_windows(settings)
        loaded = None
        if not self._faults:
            loaded = Loaded(
                settings=settings,
                rules=tuple(self._rules.values()),
                sources=self._sources,
                warnings=tuple(self._warnings),
                files=self._files,
            )
        return Attempt(loaded=loaded, faults=tuple(self._faults), files=self._files)

    def _check_windows(self, settings: Settings) -> None:
        history = settings.sampler.history
        for item in self._rules.values():
            window = item.rule.baseline.window
            if (
                isinstance(item.rule.trigger, Trigger)
                and item.rule.trigger.diff is not None
                and window > history
            ):
                message = f"{write(window, 'duration')} is longer than sampler.history: only {write(history, 'duration')} is compared with"
                self._warnings.append(Fault(item.source, f"{item.rule.name}.baseline.window", message))

    def _config_file(self, path: Path) -> None:
        document = self._read(path, "settings")
        if document is None:
            return
        leaves, settings = self._decode(document, Settings)
        self._inline.append((document, settings.rules if settings else ()))
        if files := leaves.get(("rule_files",)):
            leaves["rule_files",] = tuple(str(path.absolute().parent / name) for name in files)
        if inline := leaves.get(("rules",)):
            earlier = {rule.name: rule for rule in self._leaves.get(("rules",), ())}
            leaves["rules",] = tuple({**earlier, **{rule.name: rule for rule in inline}}.values())
        if entries := leaves.get(("exporters",)):
            leaves["exporters",] = {**self._leaves.get(("exporters",), {}), **entries}
            self._sources |= {f"exporters.{name}": document.where(("exporters", name)) for name in entries}
        self._leaves |= leaves
        self._sources |= {
            format_path(place): document.where(place)
            for place in leaves
            if place[0] != "exporters" and format_path(place) in self._sources
        }

    def _take_text(self) -> None:
        """The environment, then the command line."""
        given = from_environment(self._inputs.environment, self._faults, self._warnings)
        self._leaves |= {setting.path: value for setting, value in given.items()}
        self._sources |= {setting.name: f"environment {setting.variable}" for setting in given}
        given = from_overrides(self._inputs.overrides, self._faults)
        self._leaves |= {setting.path: value for setting, value in given.items()}
        self._sources |= {setting.name: "command line" for setting in given}

    def _all_rules(self, settings: Settings) -> None:
        installed = installed_packs() if self._inputs.packs is None else self._inputs.packs
        for name in dict.fromkeys(settings.rule_packs):
            self._pack(name, installed)
        for path in (*map(Path, settings.rule_files), *self._inputs.rule_files):
            if document := self._read(path, "rules"):
                self._rule_document(document)
        for document, rules in self._inline:
            self._add(document, rules)

    def _pack(self, name: str, installed: Mapping[str, str]) -> None:
        try:
            contents = read_pack(name, installed)
        except OperatorError as error:
            self._faults.append(Fault(self._sources["rule_packs"], f"rule_packs: {name[:60]}", error.message))
            return
        for label, content in contents:
            self._rule_document(parse_document(f"pack {label}", content, what="rules"))

    def _rule_document(self, document: Document) -> None:
        _, found = self._decode(document, RuleFile)
        self._add(document, found.rules if found else ())

    def _add(self, document: Document, rules: tuple[Rule, ...]) -> None:
        """The rules of one file over those from before."""
        for index, rule in enumerate(rules):
            source = document.where(("rules", index))
            earlier = self._rules.pop(rule.name, None)
            self._rules[rule.name] = RuleWithSource(rule, source, earlier.source if earlier else None)

    def _read(self, path: Path, what: str) -> Document | None:
        try:
            content = read_file(path)
        except OperatorError as error:
            self._files[path] = error.message
            self._faults.append(Fault(str(path), "", error.message))
            return None
        self._files[path] = fingerprint(content)
        return parse_document(str(path), content, what=what)

    def _decode(self, document: Document, kind: type[S]) -> tuple[dict[Place, Any], S | None]:
        self._faults.extend(document.faults)
        decoder = Decoder(document.where)
        found = decoder.decode(kind, document.data)
        self._faults.extend(decoder.faults)
        self._faults.extend(islice(_same_names(document), MAX_FAULTS))
        return decoder.leaves, found


def _same_names(document: Document) -> Iterator[Fault]:
    """A fault for every rule whose name an earlier one of the same file has; the file may have other faults."""
    rules = document.data.get("rules") if isinstance(document.data, dict) else None
    first: dict[str, int] = {}
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        name = rule.get("name") if isinstance(rule, dict) else None
        if not isinstance(name, str):
            continue
        if name in first:
            place: Place = ("rules", index, "name")
            message = f"the name {name[:64]!r} is already that of rules[{first[name]}]"
            yield Fault(document.where(place), format_path(place), message)
        first.setdefault(name, index)


def _assemble(kind: type[S], leaves: Mapping[Place, Any], path: Place) -> S:
    """The struct with the values given, defaults for the others."""
    values: dict[str, Any] = {}
    for item in msgspec.structs.fields(kind):
        place = (*path, item.name)
        if is_struct(item.type):
            values[item.name] = _assemble(item.type, leaves, place)
        elif place in leaves:
            values[item.name] = leaves[place]
    return kind(**values)
