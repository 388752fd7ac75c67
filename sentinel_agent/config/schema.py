"""What can be set, as a table, as a JSON Schema and as the reference in `docs/configuration.md`.

All three are read off the types of `settings` and `core.rule`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from sentinel_agent.config.hints import (
    Place,
    expected,
    format_path,
    is_plugged,
    is_sequence,
    is_struct,
    members,
    unit_of,
    unwrap,
    write,
)
from sentinel_agent.config.settings import Settings
from sentinel_agent.export.registry import installed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sentinel_agent.export.base import ExporterFactory, ExporterOptions

PREFIX = "SENTINEL_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key: `path` from the root, its type with its marks, its default and its meaning."""

    path: Place
    hint: Any
    default: Any
    description: str

    @property
    def name(self) -> str:
        """The key as it is written in messages: `sampler.interval`."""
        return format_path(self.path)

    @property
    def variable(self) -> str:
        """The environment variable that sets it: `SENTINEL_SAMPLER_INTERVAL`."""
        return PREFIX + "_".join(str(part) for part in self.path).upper()


@cache
def settings_table() -> tuple[Setting, ...]:
    """Every key that holds one value or a list of words, in the order of the file. `rules` is not among them."""
    return tuple(_walk(Settings, ()))


def _walk(kind: type[msgspec.Struct], path: Place) -> Iterator[Setting]:
    for field in msgspec.structs.fields(kind):
        place = (*path, field.name)
        if is_struct(field.type):
            yield from _walk(field.type, place)
        elif not _holds_structs(field.type) and not is_plugged(field.type):
            marks = unwrap(field.type)[1]
            meaning = next((mark.description for mark in marks if mark.description), "")
            yield Setting(place, field.type, field.default, meaning)


def _holds_structs(hint: Any) -> bool:
    return is_sequence(hint) and is_struct(get_args(unwrap(hint)[0])[0])


# --- JSON Schema -----------------------------------------------------------------------------------------------

_NUMBER = r"\d+(\.\d+)?"
_WRITTEN = {
    "duration": rf"^\s*({_NUMBER}|({_NUMBER}(ms|s|m|h|d|w))+)\s*$",
    "bytes": rf"^\s*{_NUMBER}\s*(B|k|M|G|KiB|MiB|GiB)?\s*$",
}
"""The written forms that `core.units` reads, as patterns."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a configuration file.

    Msgspec describes the structs as they are in memory; here the written forms of durations and sizes are added.
    A schema cannot say everything that the loader checks: a regular expression that does not compile passes.
    """
    schema = msgspec.json.schema(Settings)
    for kind in _structs(Settings, {}).values():
        definition = schema["$defs"][kind.__name__]
        definition["description"] = inspect.cleandoc(kind.__doc__ or "")
        for field in msgspec.structs.fields(kind):
            unit = unit_of(field.type)
            for part in _variants(definition["properties"][field.encode_name]):
                _mark(part, unit)
    for name, factory in installed().items():
        schema["$defs"][f"exporter_{name}"] = dict(_exporter_schema(name, factory.Options))
    schema["$defs"]["Settings"]["properties"]["exporters"]["additionalProperties"] = _by_kind(installed())
    schema["$defs"].pop("ExporterOptions", None)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sentinel Agent configuration",
    }
    return {**head, **schema}


@cache
def _exporter_schema(kind: str, options: type[ExporterOptions]) -> dict[str, Any]:
    """One exporter's keys."""
    schema = msgspec.json.schema(options)["$defs"][options.__name__]
    schema["title"], schema["description"] = kind, inspect.cleandoc(options.__doc__ or "")
    for field in msgspec.structs.fields(options):
        for part in _variants(schema["properties"][field.encode_name]):
            _mark(part, unit_of(field.type))
    return dict(schema)


def _by_kind(kinds: Mapping[str, ExporterFactory]) -> dict[str, Any]:
    """An entry has the keys of some kind; which one its name or its key `kind` says, and the loader checks."""
    return {"anyOf": [{"$ref": f"#/$defs/exporter_{kind}"} for kind in kinds]} if kinds else {}


def _structs(
    kind: type[msgspec.Struct], found: dict[str, type[msgspec.Struct]]
) -> dict[str, type[msgspec.Struct]]:
    """Every struct that can be reached from `kind`, by name."""
    found[kind.__name__] = kind
    for field in msgspec.structs.fields(kind):
        hint = get_args(unwrap(field.type)[0])[0] if is_sequence(field.type) else field.type
        for member in members(hint):
            if is_struct(member) and member.__name__ not in found:
                _structs(member, found)
    return found


def _variants(definition: dict[str, Any]) -> list[dict[str, Any]]:
    variants: list[dict[str, Any]] = definition.get("anyOf", [definition])
    return variants


def _mark(part: dict[str, Any], unit: str | None) -> None:
    if unit == "regex" and part.get("type") == "string":
        part["format"] = "regex"
    if unit in _WRITTEN and part.get("type") in ("number", "integer"):
        # The bounds of a number do not apply to text, so both forms fit in one schema.
        part.update(type=[part["type"], "string"], pattern=_WRITTEN[unit])
        if not {"minimum", "exclusiveMinimum"} & part.keys():
            part["minimum"] = 0


# --- the reference ---------------------------------------------------------------------------------------------


def reference() -> str:
    """The table of every setting, as Markdown."""
    lines = ["| key | value | default | meaning | environment |", "|---|---|---|---|---|"]
    for setting in settings_table():
        cells = (
            f"`{setting.name}`",
            expected(setting.hint).replace("|", "\\|"),
            f"`{written(setting.hint, setting.default)}`",
            setting.description,
            f"`{setting.variable}`",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def written(hint: Any, value: Any) -> str:
    """A value as text for people: `1m`, `64MiB`, `true`, `a, b`; `unset` for none."""
    match value:
        case None:
            return "unset"
        case bool():
            return str(value).lower()
        case int() | float():
            return write(value, unit_of(hint))
        case tuple():
            return ", ".join(value) or "none"
    return str(value)
