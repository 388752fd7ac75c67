"""The two encodings of the messages, judged by Google's own protobuf library on the same tables."""

from __future__ import annotations

import contextlib
import re
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.api import messages
from sentinel_agent.api.messages import F, Message, UnknownEnumError, decode, encode

# The library has no types of its own, and its stubs would be one more thing to install.
descriptor_pb2, descriptor_pool, json_format, message_factory = (
    import_module(f"google.protobuf.{name}")
    for name in ("descriptor_pb2", "descriptor_pool", "json_format", "message_factory")
)
_TYPES = {"string": 9, "int64": 3, "int32": 5, "double": 1, "bool": 8}


def official(message: Message) -> Any:
    """The class that the official library makes of a table; enums as int32."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"t{id(message)}.proto", package=f"p{id(message)}", syntax="proto3"
    )
    add_fields(file.message_type.add(name="M"), message, f".p{id(message)}.M")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"p{id(message)}.M"))


def add_fields(descriptor: Any, message: Message, path: str) -> None:
    for name, field in message.items():
        found = descriptor.field.add(name=name, number=field.number, label=3 if field.repeated else 1)
        found.json_name = re.sub("_(.)", lambda match: match[1].upper(), name)  # as protoc does
        if isinstance(field.kind, dict):
            found.type, found.type_name = 11, f"{path}.M{field.number}"
            add_fields(descriptor.nested_type.add(name=f"M{field.number}"), field.kind, found.type_name)
        else:
            found.type = 5 if field.kind == "enum" else _TYPES[field.kind]


def values_of(message: Message) -> st.SearchStrategy[dict[str, Any]]:
    """Any values of a message, every field there."""

    def one(field: F) -> st.SearchStrategy[Any]:
        if isinstance(field.kind, dict):
            return values_of(field.kind)
        return {
            "string": st.text(max_size=10),
            "int64": st.integers(-(2**63), 2**63 - 1),
            "int32": st.integers(0, 2**31 - 1),
            "double": st.floats(allow_nan=False, allow_infinity=False),
            "bool": st.booleans(),
            "enum": st.integers(0, max(len(field.values) - 1, 0)),
        }[field.kind]

    return st.fixed_dictionaries(
        {
            name: st.lists(one(field), max_size=3) if field.repeated else one(field)
            for name, field in message.items()
        }
    )


REPLIES = [
    messages.PROFILE_TYPES,
    messages.STACKTRACES_REPLY,
    messages.SELECT_SERIES_REPLY,
    messages.DIFF_REPLY,
    messages.STATS_REPLY,
    messages.SERIES_REPLY,
    messages.PPROF,
]
REQUESTS = [
    messages.STACKTRACES,
    messages.SELECT_SERIES,
    messages.LABEL_VALUES,
    messages.DIFF,
    messages.SPAN_PROFILE,
]
OFFICIAL = {id(table): official(table) for table in (*REPLIES, *REQUESTS)}


@pytest.mark.parametrize("table", REPLIES)
@given(data=st.data())
def test_the_official_library_reads_what_is_written(table: Message, data: st.DataObject) -> None:
    """In both encodings, and both say the same."""
    values = data.draw(values_of(table))
    kind = OFFICIAL[id(table)]
    binary = kind.FromString(encode(table, values, json=False))
    json = json_format.Parse(encode(table, values, json=True), kind())
    assert binary == json
    assert decode(table, binary.SerializeToString(), json=False) == values


@pytest.mark.parametrize("table", REQUESTS)
@given(data=st.data())
def test_what_the_official_library_writes_is_read(table: Message, data: st.DataObject) -> None:
    """In binary, in JSON with lowerCamel names, and in JSON with those of the .proto file."""
    values = data.draw(values_of(table))
    written = OFFICIAL[id(table)].FromString(encode(table, values, json=False))
    assert decode(table, written.SerializeToString(), json=False) == values
    for keep in (False, True):
        text = json_format.MessageToJson(written, preserving_proto_field_name=keep)
        assert decode(table, text.encode(), json=True) == values


def test_a_lenient_reader() -> None:
    """Nothing at all, unknown fields, null, and integers as numbers or text are understood."""
    assert decode(messages.STACKTRACES, b"", json=True) == decode(messages.STACKTRACES, b"", json=False)
    text = b'{"profileTypeID":"x","start":"5","end":6,"maxNodes":null,"later":{"a":[1]},"format":"PROFILE_FORMAT_TREE"}'
    found = decode(messages.STACKTRACES, text, json=True)
    assert (found["profile_typeID"], found["start"], found["end"], found["max_nodes"], found["format"]) == (
        "x",
        5,
        6,
        0,
        2,
    )


def test_an_enum_of_the_future_is_told_apart() -> None:
    """It must become `unimplemented`, on which Grafana falls back, not a bad request."""
    for data, json in ((b'{"format":"PROFILE_FORMAT_SANDWICH"}', True), (b"\x30\x63", False)):
        with pytest.raises(UnknownEnumError):
            decode(messages.STACKTRACES, data, json=json)


@given(st.binary(max_size=60), st.booleans())
def test_anything_is_read_or_refused(data: bytes, json: bool) -> None:
    """Only a ValueError comes out."""
    with contextlib.suppress(ValueError):
        decode(messages.DIFF, data, json=json)
