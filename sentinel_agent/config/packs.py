"""Rule packs: installed packages that bring rules, found by the entry point group `sentinel_agent.rules`.

The entry point names an importable package; every `*.yaml` beside its `__init__` is a file of rules. The agent's own
pack comes through the same door as a stranger's, and a stranger's code can do anything while it is imported, so
whatever it raises is a fault of that pack.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
from typing import TYPE_CHECKING

from sentinel_agent.config.decode import close_match
from sentinel_agent.config.files import MAX_FILE_BYTES
from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP = "sentinel_agent.rules"
_MAX_FILES = 100


def installed_packs() -> dict[str, str]:
    """The import package of every installed rule pack, by the pack's name."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}


def read_pack(name: str, packs: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """The rule files of a pack: name and content, sorted by name.

    Raises:
        OperatorError: there is no such pack, or it cannot be read.
    """
    package = packs.get(name)
    if package is None:
        hint = close_match(name, list(packs)) or f"; installed: {', '.join(sorted(packs)) or 'none'}"
        raise OperatorError(f"no such rule pack{hint}")
    try:
        folder = importlib.resources.files(package)
        files = sorted(
            (item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda f: f.name
        )
        contents = []
        for file in files[:_MAX_FILES]:
            with file.open("rb") as stream:
                contents.append((f"{name}/{file.name}", stream.read(MAX_FILE_BYTES + 1)))
    except Exception as error:
        raise OperatorError(f"the rule pack cannot be read: {error!r:.200}") from error
    if not contents:
        raise OperatorError(f"the rule pack has no *.yaml in its package {package}")
    if len(files) > _MAX_FILES or any(len(content) > MAX_FILE_BYTES for _, content in contents):
        raise OperatorError(
            f"expected at most {_MAX_FILES} files of at most {MAX_FILE_BYTES} bytes in the rule pack"
        )
    return contents
