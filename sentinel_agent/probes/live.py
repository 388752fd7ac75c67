"""The reader of one watched process: opened off the sampling path, tried again while the process is starting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sentinel_agent.cpython.process import Interpreter, open_process
from sentinel_agent.errors import NoSuchTargetError, NotPermittedError, TargetError
from sentinel_agent.probes.pulse import Pulse
from sentinel_agent.target.liveness import is_running

if TYPE_CHECKING:
    from sentinel_agent.core.model import TargetId

ATTEMPTS = 12
"""A process that cannot be read so often is not starting any more."""


class LiveReader:
    """`interpreter` once it could be opened; until then, or if it never can, `why_not` says why.

    `pulse` is for whoever looks at all stacks again and again to tell it.
    """

    def __init__(self, target: TargetId, root: Path = Path("/")) -> None:
        self.interpreter: Interpreter | None = None
        self.why_not = "the reader of its memory is not open yet"
        self.pulse = Pulse()
        self._target = target
        self._root = root
        self._left = ATTEMPTS

    @property
    def wanted(self) -> bool:
        """Whether `open` is worth calling."""
        return self.interpreter is None and self._left > 0

    def open(self) -> None:
        """Find the interpreter; takes tens of milliseconds, so not on the sampling path. Failure is in `why_not`."""
        self._left -= 1
        try:
            interpreter = open_process(self._target.pid, self._root)
        except (NoSuchTargetError, NotPermittedError) as error:
            self.why_not = error.message
            self._left = 0
        except TargetError as error:  # it may only be starting: its libraries are mapped one by one
            self.why_not = error.message
        except Exception as error:  # noqa: BLE001 - a fault of our reader must not end the agent: it reads less and says so
            self.why_not = f"internal fault of the reader: {type(error).__name__}: {error}"[:300]
            self._left = 0
        else:
            if is_running(self._target, self._root):
                self.interpreter = interpreter
            else:  # its pid may have become another process's
                self.close()

    def close(self) -> None:
        """Read no more."""
        self.interpreter = None
        self.why_not = "the process has ended"
        self._left = 0
