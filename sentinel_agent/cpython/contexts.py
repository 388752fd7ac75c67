"""What tasks say that they are for: the labels of `sentinel_agent.context` in the target, read out of each task's context.

A context (PEP 567) keeps its variables in a hash array mapped trie, which is immutable and shared by all contexts that were copied from
it, so each trie is walked once. It is walked whole, so that neither hashes nor their changes between versions matter.
Layouts: `struct _pycontextobject` (Include/internal/pycore_context.h), `PyHamtObject` (Include/internal/pycore_hamt.h) and the three
kinds of nodes (Python/hamt.c), the same from 3.8 to 3.15. Types are checked by name before anything is followed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sentinel_agent.cpython.memory import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sentinel_agent.cpython.modules import Modules
    from sentinel_agent.cpython.objects import Objects

MODULE, VARIABLE = "sentinel_agent.request_context", "CURRENT"
BETWEEN_PAIRS, WITHIN_PAIR = "\x1e", "\x1f"
MAX_LABELS = 16

Labels = tuple[tuple[str, str], ...]

_VARS = 24  # ctx_vars in a context
_ROOT = 16  # h_root in a trie
_ITEMS = {
    "hamt_bitmap_node": 32,
    "hamt_collision_node": 32,
    "hamt_array_node": 16,
}  # where a node's pointers begin
_PAIRED = frozenset({"hamt_bitmap_node", "hamt_collision_node"})  # key and value; a child has no key
_BRANCHES = 32
_DEEPEST = 9  # 32 bits of hash, five at a time, then a collision, then none
_MOST_NODES = 256  # of one trie
_MOST_NAME, _MOST_VALUE = 60, 200


class Contexts:
    """Finds the labels. Addresses are the target's."""

    def __init__(self, objects: Objects, modules: Modules) -> None:
        self._objects = objects
        self._modules = modules
        self._names: dict[int, str] = {}

    def labels(self, contexts: Sequence[int]) -> list[Labels]:
        """For each context (0: none) its labels, the outermost first; without any where it cannot be read."""
        nothing: list[Labels] = [() for _ in contexts]
        variable = self._modules.value(MODULE, VARIABLE)
        if not variable:
            return nothing
        self._names.clear()
        tries = self._follow(contexts, "Context", _VARS)
        roots = dict.fromkeys(trie for trie in tries if trie)
        found = dict(zip(roots, self._values(self._follow([*roots], "hamt", _ROOT), variable), strict=True))
        texts = self._objects.texts([found.get(trie, 0) for trie in tries])
        return [parse(text) if text else () for text in texts]

    def _follow(self, addresses: Sequence[int], kind: str, at: int) -> list[int]:
        """The pointer at `at` in each object, 0 where it is not of this type."""
        heads = self._objects.many([(address, at + 8 if address else 0) for address in addresses])
        return [
            struct.unpack_from("<Q", head, at)[0] if head is not None and self._type(head) == kind else 0
            for head in heads
        ]

    def _values(self, roots: Sequence[int], variable: int) -> list[int]:
        """What each trie has for the variable, 0 for nothing; level by level, all tries at once."""
        values = [0] * len(roots)
        seen = [1] * len(roots)
        level = [(number, root) for number, root in enumerate(roots) if root]
        for _ in range(_DEEPEST):
            below: list[tuple[int, int]] = []
            for number, child, key in self._nodes(level):
                if key == variable:
                    values[number] = child
                elif not key and seen[number] < _MOST_NODES:
                    seen[number] += 1
                    below.append((number, child))
            level = [(number, node) for number, node in below if not values[number]]
            if not level:
                break
        return values

    def _nodes(self, level: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
        """(number, child or value, key or 0) of each item of these nodes."""
        heads = self._objects.many([(node, 24) for _, node in level])
        bodies, kinds = [], []
        for (_, node), head in zip(level, heads, strict=True):
            kind = "" if head is None else self._type(head)
            count = 0
            if head is not None and kind in _ITEMS:
                (count,) = struct.unpack_from("<Q", head, 16)
                count = _BRANCHES if kind not in _PAIRED else count if count <= 2 * _BRANCHES else 0
            bodies.append((node + _ITEMS.get(kind, 0), 8 * count))
            kinds.append(kind)
        for (number, _), kind, body in zip(level, kinds, self._objects.many(bodies), strict=True):
            words = [word for (word,) in struct.iter_unpack("<Q", body or b"")]
            if kind in _PAIRED:
                pairs = zip(words[::2], words[1::2], strict=False)
            else:
                pairs = zip([0] * len(words), words, strict=True)
            yield from ((number, value, key) for key, value in pairs if value)

    def _type(self, head: bytes) -> str:
        """The type name of an object by its first bytes, without its module; empty if it cannot be read."""
        at = self._objects.layout.objects.ob_type
        address = int.from_bytes(head[at : at + 8], "little")
        name = self._names.get(address)
        if name is None:
            try:
                name = self._objects.type_name(address).rpartition(".")[2]
            except UnreadableError:
                name = ""
            self._names[address] = name
        return name


def parse(text: str) -> Labels:
    """The labels of a text; a name that comes twice has its last value, what is no label is left out."""
    labels: dict[str, str] = {}
    for pair in text.split(BETWEEN_PAIRS):
        name, between, value = pair.partition(WITHIN_PAIR)
        if name and between:
            labels[name[:_MOST_NAME]] = value[:_MOST_VALUE]
    return tuple(labels.items())[-MAX_LABELS:]
