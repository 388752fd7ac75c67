"""The messages of `querier.v1.QuerierService`, as tables, and their two encodings: protobuf and proto3 JSON.

Field numbers: grafana/pyroscope, api/querier/v1/querier.proto and api/types/v1/types.proto. JSON: protobuf.dev,
"ProtoJSON Format": lowerCamel names on the way out, those of the .proto file accepted too on the way in, 64 bit
integers as strings. Unknown fields are skipped. A decoded message is a dict that has every field of its table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from sentinel_agent.profile import protobuf

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["string", "int64", "int32", "double", "bool", "enum"]
MAX_LIST = 10_000
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class F:
    """One field: its number, its kind or message, and whether it is repeated. `values` are an enum's names in order."""

    number: int
    kind: Kind | Message = "string"
    repeated: bool = False
    values: tuple[str, ...] = ()


Message = dict[str, F]
"""A message's fields by their names in the .proto file."""

LABEL = {"name": F(1), "value": F(2)}
LABELS = {"labels": F(1, LABEL, repeated=True)}
TIMES = {"start": F(1, "int64"), "end": F(2, "int64")}
PROFILE_TYPE = {
    "ID": F(1),
    "name": F(2),
    "sample_type": F(4),
    "sample_unit": F(5),
    "period_type": F(6),
    "period_unit": F(7),
}
PROFILE_TYPES = {"profile_types": F(1, PROFILE_TYPE, repeated=True)}
LABEL_NAMES = {"matchers": F(1, repeated=True), "start": F(2, "int64"), "end": F(3, "int64")}
LABEL_VALUES = {"name": F(1), "matchers": F(2, repeated=True), "start": F(3, "int64"), "end": F(4, "int64")}
NAMES = {"names": F(1, repeated=True)}
SERIES = {
    "matchers": F(1, repeated=True),
    "label_names": F(2, repeated=True),
    "start": F(3, "int64"),
    "end": F(4, "int64"),
}
SERIES_REPLY = {"labels_set": F(2, LABELS, repeated=True)}
FORMAT = (
    "PROFILE_FORMAT_UNSPECIFIED",
    "PROFILE_FORMAT_FLAMEGRAPH",
    "PROFILE_FORMAT_TREE",
    "PROFILE_FORMAT_DOT",
    "PROFILE_FORMAT_PPROF",
)
_SITE = {"call_site": F(1, {"name": F(1)}, repeated=True)}
_SELECTED = {
    "profile_typeID": F(1),
    "label_selector": F(2),
    "start": F(3, "int64"),
    "end": F(4, "int64"),
}
STACKTRACES = {
    **_SELECTED,
    "max_nodes": F(5, "int64"),
    "format": F(6, "enum", values=FORMAT),
    "stack_trace_selector": F(7, _SITE),
    "profile_id_selector": F(8, repeated=True),
    "span_selector": F(11, repeated=True),
}
FLAMEGRAPH = {
    "names": F(1, repeated=True),
    "levels": F(2, {"values": F(1, "int64", repeated=True)}, repeated=True),
    "total": F(3, "int64"),
    "max_self": F(4, "int64"),
}
STACKTRACES_REPLY = {"flamegraph": F(1, FLAMEGRAPH)}
SPAN_PROFILE = {
    "profile_typeID": F(1),
    "label_selector": F(2),
    "span_selector": F(3, repeated=True),
    "start": F(4, "int64"),
    "end": F(5, "int64"),
    "max_nodes": F(6, "int64"),
    "format": F(7, "enum", values=FORMAT),
}
SELECT_SERIES = {
    **_SELECTED,
    "group_by": F(5, repeated=True),
    "step": F(6, "double"),
    "aggregation": F(
        7, "enum", values=("TIME_SERIES_AGGREGATION_TYPE_SUM", "TIME_SERIES_AGGREGATION_TYPE_AVERAGE")
    ),
    "stack_trace_selector": F(8, _SITE),
    "limit": F(9, "int64"),
}
POINT = {"value": F(1, "double"), "timestamp": F(2, "int64")}
SELECT_SERIES_REPLY = {
    "series": F(
        1, {"labels": F(1, LABEL, repeated=True), "points": F(2, POINT, repeated=True)}, repeated=True
    )
}
MERGE_PROFILE = {
    **_SELECTED,
    "max_nodes": F(5, "int64"),
    "stack_trace_selector": F(6, _SITE),
    "profile_id_selector": F(7, repeated=True),
}
DIFF = {"left": F(1, STACKTRACES), "right": F(2, STACKTRACES)}
DIFF_REPLY = {
    "flamegraph": F(1, {**FLAMEGRAPH, "leftTicks": F(5, "int64"), "rightTicks": F(6, "int64")}),
}
STATS_REPLY = {
    "data_ingested": F(1, "bool"),
    "oldest_profile_time": F(2, "int64"),
    "newest_profile_time": F(3, "int64"),
}
# perftools.profiles.Profile: github.com/google/pprof, proto/profile.proto
_VALUE_TYPE = {"type": F(1, "int64"), "unit": F(2, "int64")}
PPROF = {
    "sample_type": F(1, _VALUE_TYPE, repeated=True),
    "sample": F(
        2, {"location_id": F(1, "int64", repeated=True), "value": F(2, "int64", repeated=True)}, repeated=True
    ),
    "mapping": F(
        3,
        {"id": F(1, "int64"), "has_functions": F(7, "bool"), "has_filenames": F(8, "bool")},
        repeated=True,
    ),
    "location": F(
        4,
        {
            "id": F(1, "int64"),
            "mapping_id": F(2, "int64"),
            "line": F(4, {"function_id": F(1, "int64"), "line": F(2, "int64")}, repeated=True),
        },
        repeated=True,
    ),
    "function": F(5, {"id": F(1, "int64"), "name": F(2, "int64"), "filename": F(4, "int64")}, repeated=True),
    "string_table": F(6, repeated=True),
    "time_nanos": F(9, "int64"),
    "duration_nanos": F(10, "int64"),
    "period_type": F(11, _VALUE_TYPE),
    "period": F(12, "int64"),
}
NOTHING: Message = {}


class UnknownEnumError(ValueError):
    """An enum has a value that came after this program."""


def decode(message: Message, data: bytes, *, json: bool, most: int = MAX_LIST) -> dict[str, Any]:
    """The message in `data`; an empty one is a message of defaults. A list has at most `most` entries.

    Raises:
        UnknownEnumError: an enum's name is not known.
        ValueError: it is no such message.
    """
    try:
        if not json:
            return _from_proto(message, memoryview(data), _Bounds(_MAX_DEPTH, most))
        document = msgspec.json.decode(data) if data.strip() else {}
        return _from_json(message, document, _Bounds(_MAX_DEPTH, most))
    except IndexError as error:
        raise ValueError("the message ends in the middle") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise ValueError(f"the message cannot be read: {error}") from error


def encode(message: Message, values: Mapping[str, Any], *, json: bool) -> bytes:
    """The bytes of a message; fields that are missing have their defaults."""
    return msgspec.json.encode(_to_json(message, values)) if json else _to_proto(message, values)


def _defaults(message: Message) -> dict[str, Any]:
    return {name: [] if field.repeated else _default(field) for name, field in message.items()}


def _default(field: F) -> Any:
    match field.kind:
        case "string":
            return ""
        case "double":
            return 0.0
        case "bool":
            return False
        case "int64" | "int32" | "enum":
            return 0
    return _defaults(field.kind)


class _Bounds(NamedTuple):
    """How many messages may still be nested, and how long a list may be."""

    depth: int
    entries: int

    def inside(self) -> _Bounds:
        return self._replace(depth=self.depth - 1)


def _from_proto(message: Message, data: memoryview, bounds: _Bounds) -> dict[str, Any]:
    if bounds.depth < 0:
        raise ValueError("messages are nested too deeply")
    found = _defaults(message)
    by_number = {field.number: (name, field) for name, field in message.items()}
    for item in protobuf.fields(data):
        name, field = by_number.get(item.number, ("", None))
        if field is None:
            continue
        if field.repeated and field.kind == "int64":
            found[name] += item.numbers()
        elif field.repeated:
            found[name].append(_proto_value(field, item, bounds))
        else:
            found[name] = _proto_value(field, item, bounds)
        if field.repeated and len(found[name]) > bounds.entries:
            raise ValueError(f"{name} has more than {bounds.entries} entries")
    return found


def _proto_value(field: F, item: protobuf.Field, bounds: _Bounds) -> Any:
    match field.kind:
        case "string":
            return bytes(item.body).decode()
        case "double":
            if not math.isfinite(item.fixed):
                raise ValueError("a number is not finite")
            return item.fixed
        case "bool":
            return bool(item.value)
        case "enum":
            if not 0 <= item.value < len(field.values):
                raise UnknownEnumError(f"value {item.value} of an enum is not known")
            return item.value
        case "int64" | "int32":
            return item.value
    return _from_proto(field.kind, item.body, bounds.inside())


def _from_json(message: Message, document: Any, bounds: _Bounds) -> dict[str, Any]:
    if not isinstance(document, dict) or bounds.depth < 0:
        raise ValueError("the message cannot be read: expected an object")
    found = _defaults(message)
    by_name = {name: name for name in message} | {_camel(name): name for name in message}
    for key, value in document.items():
        name = by_name.get(key)
        if name is None or value is None:
            continue
        field = message[name]
        if not field.repeated:
            found[name] = _json_value(field, value, bounds)
        elif isinstance(value, list) and len(value) <= bounds.entries:
            found[name] = [_json_value(field, each, bounds) for each in value]
        else:
            raise ValueError(f"{key} is no list of at most {bounds.entries} entries")
    return found


def _json_value(field: F, value: Any, bounds: _Bounds) -> Any:
    if isinstance(field.kind, dict):
        return _from_json(field.kind, value, bounds.inside())
    if field.kind == "enum":
        return _json_enum(field, value)
    text_or_number = isinstance(value, int | float | str) and not isinstance(value, bool)
    if isinstance(value, {"string": str, "bool": bool}.get(field.kind, ())):
        return value
    if field.kind == "double" and text_or_number and math.isfinite(float(value)):
        return float(value)
    if field.kind in {"int64", "int32"} and text_or_number and -(2**63) <= int(value) < 2**63:
        return int(value)
    raise ValueError(f"the message cannot be read: {str(value)[:50]!r} where a {field.kind} is expected")


def _json_enum(field: F, value: Any) -> int:
    if isinstance(value, str) and value in field.values:
        return field.values.index(value)
    if isinstance(value, int) and 0 <= value < len(field.values):
        return int(value)
    raise UnknownEnumError(f"{str(value)[:100]!r} is not known; there are {', '.join(field.values)}")


def _to_proto(message: Message, values: Mapping[str, Any]) -> bytes:
    parts: list[bytes] = []
    for name, field in message.items():
        value = values.get(name)
        if value is None or value == []:
            continue
        if field.repeated and field.kind == "int64":
            parts.append(protobuf.packed(field.number, value))
        elif field.repeated:
            parts += [_proto_field(field, each) for each in value]
        elif value or field.kind == "double" or isinstance(field.kind, dict):
            parts.append(_proto_field(field, value))
    return b"".join(parts)


def _proto_field(field: F, value: Any) -> bytes:
    match field.kind:
        case "string":
            return protobuf.block(field.number, value.encode("utf-8", "backslashreplace"))
        case "double":
            return protobuf.double(field.number, value)
        case "bool" | "int64" | "int32" | "enum":
            return protobuf.integer(field.number, int(value))
    return protobuf.block(field.number, _to_proto(field.kind, value))


def _to_json(message: Message, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in message.items():
        value = values.get(name)
        if value is None:
            continue
        found[_camel(name)] = (
            [_json_field(field, each) for each in value] if field.repeated else _json_field(field, value)
        )
    return found


def _json_field(field: F, value: Any) -> Any:
    match field.kind:
        case "int64":
            return str(value)
        case "string":
            return value.encode("utf-8", "backslashreplace").decode()
        case "int32" | "double" | "bool" | "enum":
            return value
    return _to_json(field.kind, value)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)
