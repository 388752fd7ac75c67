"""What the target's modules hold: module dictionaries by name, in every interpreter of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentinel_agent.cpython.memory import UnreadableError

if TYPE_CHECKING:
    from sentinel_agent.cpython.objects import Objects
    from sentinel_agent.cpython.threads import Threads


class Modules:
    """Looks into `sys.modules`. Addresses are the target's."""

    def __init__(self, objects: Objects, threads: Threads) -> None:
        self._objects = objects
        self._threads = threads

    def tables(self) -> list[tuple[int, int]]:
        """`sys.modules` of each interpreter and how many modules are in it.

        Raises:
            UnreadableError: the interpreters cannot be read.
        """
        layout, objects = self._objects.layout, self._objects
        found = [objects.word(interp + layout.interp.modules) for interp in self._threads.interpreters()]
        return [(table, objects.word(table + layout.dict.used)) for table in found if table]

    def namespaces(self, table: int, *names: str) -> list[int | None]:
        """The dictionaries of modules in `table`; None for one that is not there.

        Raises:
            UnreadableError: they cannot be read.
        """
        at = self._objects.layout.objects.module_dict
        return [module and self._objects.word(module + at) for module in self._objects.lookup(table, *names)]

    def value(self, module: str, name: str) -> int | None:
        """A module's global from the first interpreter that has it; None where there is none or it cannot be read."""
        try:
            for table, _ in self.tables():
                (namespace,) = self.namespaces(table, module)
                if namespace:
                    return self._objects.lookup(namespace, name)[0]
        except UnreadableError:
            return None
        return None
