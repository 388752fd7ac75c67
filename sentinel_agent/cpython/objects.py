"""Decode the few kinds of Python objects that the reader meets. Every size and count from the target is capped.

Layouts: Include/cpython/{object,unicodeobject,longintrepr,dictobject}.h, Include/internal/pycore_{dict,object}.h and
Objects/setobject.c of CPython. Managed instance dictionaries changed in 3.11, 3.12 and 3.13 (Objects/object_layout.md).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sentinel_agent.cpython.memory import MAX_RANGES, MAX_READ, Memory, UnreadableError, must_read, read_word

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sentinel_agent.cpython.layouts.model import Layout

MAX_TEXT = 1000
"""Most characters of a text that are kept."""
MAX_ENTRIES = 1 << 22
"""Most entries of a dictionary or set."""
_MANAGED_DICT = 1 << 4
_INLINE_VALUES = 1 << 2
_MAX_BASES = 16
_ENCODINGS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}
_HEADER = 80
_SPLIT_KEYS = 2


class Objects:
    """Reads objects out of `memory` as `layout` says. Every method raises UnreadableError where it cannot."""

    def __init__(self, memory: Memory, layout: Layout) -> None:
        self.memory = memory
        self.layout = layout

    def word(self, address: int) -> int:
        """The pointer or size at `address`."""
        return read_word(self.memory, address)

    def signed(self, address: int, size: int = 4) -> int:
        """The signed number of `size` bytes at `address`."""
        return int.from_bytes(must_read(self.memory, address, size), "little", signed=True)

    def type_of(self, address: int) -> int:
        """Address of an object's type."""
        return self.word(address + self.layout.objects.ob_type)

    def type_name(self, type_address: int) -> str:
        """A type's `tp_name`: with its module for a type written in C, without for one written in Python."""
        name_address = self.word(type_address + self.layout.objects.type_name)
        for size in (128, 32, 8):
            found = self.memory.read(name_address, size)
            if found is not None and b"\0" in found:
                return found.partition(b"\0")[0].decode("utf-8", "replace")
        raise UnreadableError(f"no type name at {name_address:#x}")

    def basicsize(self, type_address: int) -> int:
        """A type's `tp_basicsize`."""
        return self.word(type_address + self.layout.objects.type_basicsize)

    def bases(self, type_address: int) -> Iterator[int]:
        """The type and the chain of its first bases."""
        for _ in range(_MAX_BASES):
            if not type_address:
                return
            yield type_address
            type_address = self.word(type_address + self.layout.objects.type_base)

    def text(self, address: int) -> str:
        """A str."""
        found = self.texts([address])[0]
        if found is None:
            raise UnreadableError(f"no str at {address:#x}")
        return found

    def texts(self, addresses: Sequence[int]) -> list[str | None]:
        """Several str objects in as few calls as can be, None for what is none. At most MAX_TEXT characters each."""
        answer: list[str | None] = [None] * len(addresses)
        rest: list[tuple[int, int, int, int]] = []
        heads = self.many([(address, _HEADER if address else 0) for address in addresses])
        # A short text may end where its mapping does: then its fixed part alone must do for the first look.
        lost = [i for i, head in enumerate(heads) if head is None and addresses[i]]
        for i, head in zip(
            lost, self.many([(addresses[i], self.layout.unicode.ascii_size) for i in lost]), strict=True
        ):
            heads[i] = head
        for i, head in enumerate(heads):
            span = None if head is None else self._text_span(addresses[i], head)
            if head is None or span is None:
                continue
            start, size, kind = span
            offset = start - addresses[i]
            if offset >= 0 and offset + size <= len(head):
                answer[i] = _decode(head[offset : offset + size], kind)
            else:
                rest.append((i, start, size, kind))
        for (i, _, _, kind), data in zip(
            rest, self.many([(start, size) for _, start, size, _ in rest]), strict=True
        ):
            answer[i] = None if data is None else _decode(data, kind)
        return answer

    def _text_span(self, address: int, head: bytes) -> tuple[int, int, int] | None:
        """Address, size in bytes and bytes per character of a text, from its first bytes."""
        unicode = self.layout.unicode
        length = int.from_bytes(head[unicode.length : unicode.length + 8], "little")
        state = int.from_bytes(head[unicode.state : unicode.state + 4], "little")
        kind = state >> unicode.kind_shift & 7
        if kind not in _ENCODINGS or length >= 1 << 40:
            return None
        if not state & unicode.compact_mask:
            start = int.from_bytes(head[unicode.data : unicode.data + 8], "little")
        else:
            start = address + (unicode.ascii_size if state & unicode.ascii_mask else unicode.compact_size)
        return start, min(length, MAX_TEXT) * kind, kind

    def bytes_of(self, address: int, most: int) -> bytes:
        """A bytes object of at most `most` bytes; a longer one is an error."""
        objects = self.layout.objects
        size = self.word(address + objects.ob_size)
        if size > most:
            raise UnreadableError(f"a bytes object of {size} bytes at {address:#x}: at most {most} are read")
        start = address + objects.bytes_sval
        return b"".join(
            must_read(self.memory, start + at, min(MAX_READ, size - at)) for at in range(0, size, MAX_READ)
        )

    def integer(self, address: int) -> int:
        """An int of at most 60 bits."""
        (value,) = self.integers([address])
        if value is None:
            raise UnreadableError(f"no small int at {address:#x}")
        return value

    def integers(self, addresses: Sequence[int]) -> list[int | None]:
        """Several int objects in one call, None for what is none or is longer than 60 bits."""
        size = self.layout.objects.int_digits + 8
        heads = self.many([(address, size if address else 0) for address in addresses])
        return [None if head is None else self.small_integer(head) for head in heads]

    def small_integer(self, head: bytes) -> int | None:
        """An int of at most 60 bits from its first bytes, up to its second digit; None for what is none.

        Include/cpython/longintrepr.h: digits of 30 bits, the lowest first; two are read.
        """
        objects = self.layout.objects
        size = int.from_bytes(head[objects.int_size : objects.int_size + 8], "little", signed=True)
        if self.layout.minor < 12:
            count, negative = abs(size), size < 0
        else:  # lv_tag: the sign in the two lowest bits (2 is negative), the number of digits above the lowest three
            count, negative = size >> 3, size & 3 == 2
        if not 0 <= count <= 2:
            return None
        digits = struct.unpack_from("<2I", head, objects.int_digits)
        value: int = sum(digit << 30 * i for i, digit in enumerate(digits[:count]))
        return -value if negative else value

    def mapping_items(self, address: int, most: int = MAX_ENTRIES) -> Iterator[tuple[int, int]]:
        """Keys and values of a dict, as addresses."""
        head = must_read(self.memory, address, self.layout.dict.size)
        keys, values = (
            int.from_bytes(head[at : at + 8], "little")
            for at in (self.layout.dict.keys, self.layout.dict.values)
        )
        return self._entries(keys, values + self.layout.dict.values_values if values else 0, most)

    def _entries(self, keys: int, values: int, most: int) -> Iterator[tuple[int, int]]:
        """Entries of a keys object; `values` is the array of a split table's values, or 0."""
        table = self.layout.dict
        head = must_read(self.memory, keys, table.dk_indices)
        count = int.from_bytes(head[table.dk_nentries : table.dk_nentries + 8], "little")
        if self.layout.minor >= 11:
            log2_size, log2_bytes = head[table.dk_log2_size], head[table.dk_log2_index_bytes]
            slots, index_bytes, general = (
                1 << min(log2_size, 48),
                1 << min(log2_bytes, 48),
                head[table.dk_kind] == 0,
            )
        else:
            slots = int.from_bytes(head[table.dk_size : table.dk_size + 8], "little")
            index_bytes, general = slots * (1 if slots <= 0xFF else 2 if slots <= 0xFFFF else 4), True
        if count > min(slots, most):
            raise UnreadableError(
                f"a dict of {count} entries at {keys:#x}: at most {min(slots, most)} are read"
            )
        width = 3 if general else 2
        words = self._words(keys + table.dk_indices + index_bytes, count, width)
        if not values:
            yield from ((entry[-2], entry[-1]) for entry in words if entry[-1])
            return
        stored = self._words(values, count, 1)
        yield from (
            (entry[-2], value) for entry, (value,) in zip(words, stored, strict=True) if value and entry[-2]
        )

    def _words(self, address: int, count: int, width: int) -> Iterator[tuple[int, ...]]:
        """`count` records of `width` words, a megabyte at a time."""
        step = MAX_READ // (8 * width)
        for first in range(0, count, step):
            here = min(step, count - first)
            data = must_read(self.memory, address + first * width * 8, here * width * 8)
            yield from struct.iter_unpack(f"<{width}Q", data)

    def lookup(self, address: int, *names: str) -> list[int | None]:
        """The values that a dict has for some str keys, as addresses."""
        return self._pick(self.mapping_items(address), names)

    def _pick(self, items: Iterator[tuple[int, int]], names: tuple[str, ...]) -> list[int | None]:
        pairs = list(items)
        found: dict[str, int] = {}
        for first in range(0, len(pairs), MAX_RANGES):
            some = pairs[first : first + MAX_RANGES]
            for name, (_, value) in zip(self.texts([key for key, _ in some]), some, strict=True):
                if name in names:
                    found[name] = value
        return [found.get(name) for name in names]

    def attributes(self, address: int, *names: str) -> list[int | None]:
        """The values that the instance dictionary of an object has for `names`, as addresses."""
        return self._pick(self._instance_items(address), names)

    def _instance_items(self, address: int) -> Iterator[tuple[int, int]]:
        objects, minor = self.layout.objects, self.layout.minor
        type_address = self.type_of(address)
        offset = self.signed(type_address + objects.type_dictoffset, 8)
        flags = self.word(type_address + objects.type_flags)
        if minor < 11 or not flags & _MANAGED_DICT:
            if not 0 < offset < MAX_READ:
                raise UnreadableError(f"the object at {address:#x} has no instance dictionary")
            return self.mapping_items(self.word(address + offset))
        values, mapping = self._managed(address, type_address, flags)
        if mapping:
            return self.mapping_items(mapping)
        if not values:
            return iter(())
        keys = self.word(type_address + objects.type_cached_keys)
        return self._entries(keys, values + self.layout.dict.values_values, MAX_ENTRIES)

    def _managed(self, address: int, type_address: int, flags: int) -> tuple[int, int]:
        """Addresses of the inline values and of the dictionary of an object, 0 for what it does not have."""
        if self.layout.minor == 11:
            return self.word(address - 32), self.word(address - 24)
        pointer = self.word(address - 24)
        if self.layout.minor == 12:
            return (pointer + 1, 0) if pointer & 1 else (0, pointer)
        inline = address + self.basicsize(type_address)
        valid = flags & _INLINE_VALUES and self.signed(inline + self.layout.dict.values_valid, 1)
        return (0, pointer) if pointer or not valid else (inline, 0)

    def list_items(self, address: int, most: int) -> list[int]:
        """The first `most` items of a list, as addresses."""
        count = min(self.word(address + self.layout.objects.ob_size), most)
        return [item for (item,) in self._words(self.word(address + self.layout.objects.list_item), count, 1)]

    def set_items(self, address: int, most: int = MAX_ENTRIES) -> Iterator[int]:
        """Members of a set, as addresses, one per used slot."""
        table = self.layout.set
        slots = self.word(address + table.mask) + 1
        if slots > most:
            raise UnreadableError(f"a set of {slots} slots at {address:#x}: at most {most} are read")
        # The key of a removed member points to CPython's dummy object; its hash is -1 (Objects/setobject.c).
        for key, entry_hash in self._words(self.word(address + table.table), slots, 2):
            if key and entry_hash != (1 << 64) - 1:
                yield key

    def many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Any number of small ranges, MAX_RANGES to a call."""
        answer: list[bytes | None] = []
        for first in range(0, len(ranges), MAX_RANGES):
            answer += self.memory.read_many(ranges[first : first + MAX_RANGES])
        return answer


def _decode(data: bytes, kind: int) -> str:
    # A lone surrogate is legal in a Python str and in no encoding: it becomes a question mark, like any other damage.
    return data.decode(_ENCODINGS[kind], "replace")
