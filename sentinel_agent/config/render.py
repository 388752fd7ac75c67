"""The merged configuration as people and programs read it: `config print`.

The YAML form can be loaded again and gives the same settings and rules, except that secrets are hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec
import yaml

from sentinel_agent.config.decode import is_secret
from sentinel_agent.config.document import resolve
from sentinel_agent.config.hints import Place, is_sequence, unit_of, unwrap, write
from sentinel_agent.config.schema import Setting, settings_table
from sentinel_agent.core.redact import REDACTED, redact_text

if TYPE_CHECKING:
    from sentinel_agent.config.load import Loaded
    from sentinel_agent.core.rule import Rule
    from sentinel_agent.export.base import ExporterOptions

_COLUMN = 44

_REFERENCES = ("env:", "file:")
"""How an exporter's secret says where it is; that is no secret."""

_Line = tuple[str, str]
"""A line of YAML and the source that stands behind it, or nothing."""


def to_yaml(loaded: Loaded) -> str:
    """Settings and rules in force; behind each value, as a comment, where it is from."""
    lines: list[_Line] = []
    section: Place = ()
    for setting in settings_table():
        *outer, key = setting.path
        if tuple(outer) != section and outer:
            lines.append((f"{outer[-1]}:", ""))
        section = tuple(outer)
        text = _inline(setting.hint, _value(loaded, setting), setting.path)
        lines.append((f"{'  ' * len(outer)}{key}: {text}", loaded.sources[setting.name]))
    lines += _exporters(loaded)
    lines += _rules(loaded)
    return "".join(
        f"{text:<{_COLUMN}}  # {_one_line(source)}\n" if source else f"{text}\n" for text, source in lines
    )


def to_document(loaded: Loaded) -> dict[str, Any]:
    """The same for programs, ready for JSON: durations in seconds, sizes in bytes.

    `{"settings": ..., "rules": [{"rule", "source", "replaces"}], "sources": {key: source}, "warnings": [...]}`
    """
    return {
        "settings": redact(msgspec.to_builtins(loaded.settings)),
        "rules": redact(msgspec.to_builtins(loaded.rules)),
        "sources": dict(loaded.sources),
        "warnings": [str(warning) for warning in loaded.warnings],
    }


def redact(value: Any, path: Place = ()) -> Any:
    """Plain data with what looks like a secret hidden: by the name of its key or by its looks."""
    match value:
        case dict():
            return {key: redact(item, (*path, key)) for key, item in value.items()}
        case list() | tuple():
            return [redact(item, path) for item in value]
        case str():
            if is_secret(path) and not value.startswith(_REFERENCES):
                return REDACTED if value else value
            return redact_text(value)
    return value


def _value(loaded: Loaded, setting: Setting) -> Any:
    value: Any = loaded.settings
    for part in setting.path:
        value = getattr(value, str(part))
    return value


def _exporters(loaded: Loaded) -> list[_Line]:
    entries = loaded.settings.exporters
    if not entries:
        return [("exporters: {}", "")]
    lines: list[_Line] = [("exporters:", "")]
    for name, options in entries.items():
        lines.append((f"  {name}:" + " {}" * (not _differing(options)), loaded.sources[f"exporters.{name}"]))
        lines += [(f"    {key}: {text}", "") for key, text in _differing(options)]
    return lines


def _rules(loaded: Loaded) -> list[_Line]:
    if not loaded.rules:
        return [("rules: []", "")]
    lines = [("rules:", "")]
    for item in loaded.rules:
        source = item.source + (f", replaces {item.replaces}" if item.replaces else "")
        for index, (key, text) in enumerate(_differing(item.rule)):
            lines.append((f"  {'-' if index == 0 else ' '} {key}: {text}", "" if index else source))
    return lines


def _differing(struct: Rule | ExporterOptions) -> list[tuple[str, str]]:
    """The keys of a rule or an exporter that differ from their defaults, each on one line."""
    return [
        (field.name, _inline(field.type, value, (field.name,)))
        for field in msgspec.structs.fields(struct)
        if (value := getattr(struct, field.name)) != field.default and value != {}
    ]


def _inline(hint: Any, value: Any, path: Place) -> str:
    """A value on one line of YAML, durations and sizes in their written form."""
    if isinstance(value, msgspec.Struct | dict):
        parts = (
            [(_text(key), Any, item) for key, item in value.items()]
            if isinstance(value, dict)
            else [
                (field.name, field.type, item)
                for field in msgspec.structs.fields(value)
                if (item := getattr(value, field.name)) != field.default
            ]
        )
        return f"{{{', '.join(f'{key}: {_inline(kind, item, (*path, key))}' for key, kind, item in parts)}}}"
    if isinstance(value, tuple):
        kind = get_args(unwrap(hint)[0])[0] if is_sequence(hint) else Any
        return f"[{', '.join(_inline(kind, item, path) for item in value)}]"
    if isinstance(value, str):
        return _text(redact(value, path))
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return write(value, unit_of(hint))


def _text(value: str) -> str:
    # PyYAML writes YAML 1.1, in which `1e3` is text without quotes.
    style = None if isinstance(resolve(value), str) else "'"
    written = yaml.safe_dump(
        [value], default_flow_style=True, allow_unicode=True, width=10**6, default_style=style
    )
    return written.strip()[1:-1]


def _one_line(text: str) -> str:
    return " ".join(text.split())
