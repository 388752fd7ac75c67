"""Text into plain data: lines, faults of the text, and files that are not what they should be."""

from __future__ import annotations

import math
import os
import re
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.config import document
from sentinel_agent.config.document import Document, parse_document, resolve
from sentinel_agent.config.files import MAX_FILE_BYTES, read_file
from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["C", "Python"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of PyYAML's parsers: the C one is not on every machine."""
    name = "CSafeLoader" if request.param == "C" else "SafeLoader"
    monkeypatch.setattr(document, "_LOADER", getattr(yaml, name))


def parse(text: str | bytes, name: str = "f.yaml") -> Document:
    return parse_document(name, text.encode() if isinstance(text, str) else text)


def fault(text: str | bytes, name: str = "f.yaml") -> str:
    (only,) = parse(text, name).faults
    return str(only)


def test_data_and_lines() -> None:
    """Every key and list item knows its line; a place without a line has that of the place around it."""
    found = parse("a: 1\nb:\n  - x\n  - c: [1, 2]\n")
    assert found.data == {"a": 1, "b": ["x", {"c": [1, 2]}]}
    assert found.where(("b", 1, "c")) == "f.yaml:4"
    assert found.where(("b", 1, "missing")) == "f.yaml:4"
    assert found.where(("missing",)) == "f.yaml"


def test_core_schema() -> None:
    """Plain scalars follow YAML 1.2: what 1.1 would read as a boolean, a date or base 60 stays text."""
    text = (
        "[1, -2, 0x1F, 0o17, 1.5, 1e3, .5, ~, null, true, False, on, no, 12:30, 2024-01-01, 1_000, '1', 010]"
    )
    expected: list[Any] = [1, -2, 31, 15, 1.5, 1000.0, 0.5, None, None, True, False]
    expected += ["on", "no", "12:30", "2024-01-01", "1_000", "1", 10]
    assert parse(text).data == expected


def test_not_finite() -> None:
    """The words for infinity and NaN are numbers, so that the decoder can refuse them as such."""
    assert resolve(".inf") == math.inf
    assert resolve("-.INF") == -math.inf
    value = resolve(".nan")
    assert isinstance(value, float)
    assert math.isnan(value)


def test_aliases() -> None:
    """An alias stands for what its anchor stands for."""
    assert parse("a: &x {b: 1}\nc: *x\nd: &y 5\ne: *y\n").data == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": 5,
        "e": 5,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"a: 1\0", "binary"),
        (b"\x89PNG\r\n\x1a\n", "UTF-8; byte 1"),
        ("a: 1".encode("utf-16"), "UTF-8"),
        (b"a: 1\nb: [1,\n", "f.yaml:3: not YAML"),
        (b"a: \x07", "not YAML"),
        (b"a: 1\n---\nb: 2", "f.yaml:2: expected one document"),
        (b"a: 1\nb: !!python/object/apply:os.system [x]", "f.yaml:2: tags are not supported"),
        (b"a: !!int 3", "tags are not supported"),
        (b"a: *b", "alias *b"),
        (b"a: &b [*b]", "alias *b"),
        (b"a: &b {c: 1}\nd:\n  <<: *b", "f.yaml:3: merge keys"),
        (b"? [1]\n: 2", "expected a plain key"),
        (b"a: &x b\n*x : 2", "expected a plain key"),
        (b"a: " + b"[" * 33, "nested deeper than 32"),
        (b"[" * 200_000, "nest"),  # PyYAML 6.0.4 says it in words of its own
        (b'a: "\\ud800"', ""),
    ],
)
def test_broken_yaml(text: bytes, words: str) -> None:
    """Whatever is wrong with the text is one fault, with its line where there is one."""
    if words:
        assert words in fault(text)
    else:
        parse(text)  # a lone surrogate: one parser refuses it, else the decoder does


def test_keys_given_twice() -> None:
    """Each key that is given again is a fault that names both lines, at any depth."""
    found = parse("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert [str(item) for item in found.faults] == [
        "f.yaml:4: b.c: given twice: first on line 3",
        "f.yaml:5: a: given twice: first on line 1",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a = [", "not TOML"),
        (b"a = 1\na = 2", "not TOML"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a." * 200 + b"b = 1", "f.toml:1: more than 100 dots"),
        (b"a = " + b"9" * 5000, "not TOML"),
        (b"\n", "empty"),
    ],
)
def test_broken_toml(text: bytes, words: str) -> None:
    """A TOML file that cannot be read is one fault."""
    assert words in fault(text, "f.toml")


def test_toml() -> None:
    """A name that ends in .toml is TOML, any other YAML."""
    assert parse("[a]\nb = 1\n", "f.toml").data == {"a": {"b": 1}}
    assert parse("a:\n  b: 1\n", "f.conf").data == {"a": {"b": 1}}


def test_byte_order_mark_and_comments() -> None:
    """A byte order mark is skipped, and a file of comments is an empty document."""
    assert parse(b"\xef\xbb\xbfa: 1").data == {"a": 1}
    assert parse(b"# a: 1\n").data is None


@given(st.binary(max_size=200) | st.text(alphabet="[]{}&*a:-?,'\"|>!%#\n\t 1", max_size=60).map(str.encode))
@pytest.mark.parametrize("name", ["f.yaml", "f.toml"])
def test_any_text(name: str, text: bytes) -> None:
    """No text makes the parser raise."""
    found = parse_document(name, text)
    assert isinstance(found, Document)


# PyYAML writes YAML 1.1, where `0E0` needs no quotes; to us, as to YAML 1.2, it is a number.
same_text = st.text().filter(lambda text: not re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+|0o[0-7]+", text))
json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | same_text,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text().filter(lambda k: k != "<<"), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_like)
def test_agrees_with_pyyaml(value: Any) -> None:
    """What PyYAML writes is read back as the same data."""
    text = yaml.safe_dump({"a": value})
    if "!!binary" not in text:
        found = parse(text)
        assert found.faults == []
        assert found.data == {"a": value}


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.integers() | st.booleans() | st.text(alphabet="xyz"), min_size=1
    )
)
def test_agrees_with_toml(value: dict[str, Any]) -> None:
    """What msgspec writes as flat TOML-like JSON values is read back as the same data."""
    text = "".join(f"{key} = {msgspec.json.encode(item).decode()}\n" for key, item in value.items())
    assert parse(text, "f.toml").data == value


# --- files -----------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(OperatorError) as caught:
        read_file(path)
    return caught.value.message


def test_no_regular_file(tmp_path: Path) -> None:
    """A directory, a pipe without a writer, a socket and a device are refused by name, at once."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert refusal(tmp_path) == "expected a file, found a directory"
        assert refusal(tmp_path / "pipe") == "expected a file, found a named pipe"
        assert refusal(tmp_path / "socket") == "expected a file, found a socket"
        assert refusal(Path("/dev/zero")) == "expected a file, found a device"


def test_missing_and_impossible_names(tmp_path: Path) -> None:
    """A file that is not there, or cannot be, is said to be."""
    assert refusal(tmp_path / "no") == "cannot be read: No such file or directory"
    assert refusal(Path("a\0b")) == "no file can have this name"
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in refusal(tmp_path / "loop")


def test_too_large(tmp_path: Path) -> None:
    """A file of 100 MB is refused by its size alone; one of exactly the limit is read."""
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 100 * 1024**2)  # a hole: it takes no disk
    assert f"at most {MAX_FILE_BYTES} bytes, found {100 * 1024**2}" in refusal(path)
    os.truncate(path, MAX_FILE_BYTES)
    assert len(read_file(path)) == MAX_FILE_BYTES


def test_growing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grew after its size was looked at is not read past the limit."""
    path = tmp_path / "growing"
    path.write_bytes(b"x" * (MAX_FILE_BYTES + 5000))
    small = tmp_path / "small"
    small.touch()
    size = small.stat()
    monkeypatch.setattr(Path, "stat", lambda self: size)
    monkeypatch.setattr(os, "fstat", lambda descriptor: size)
    assert f"found {MAX_FILE_BYTES + 1} or more" in refusal(path)


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_not_permitted(tmp_path: Path) -> None:
    """A file that may not be read is said to be so."""
    path = tmp_path / "secret"
    path.write_text("a: 1")
    path.chmod(0)
    with nobody():
        assert refusal(path) == "cannot be read: Permission denied"
