"""The way in from inside a service: start the watcher as a process of its own, and talk to it.

watcher = sentinel_agent.start(service="shop")
watcher.dump("stacks", "tasks")
watcher.stop()

Rules: the service is never worse off. Nothing here raises, waits for the agent, or imports what the standard library does not have;
if the agent is missing, broken or killed, `Watcher.error` says so and the log has one warning. The agent only reads this
process, as it would from outside; where Yama restricts that (Linux, Documentation/admin-guide/LSM/Yama.rst) this process names
it as the one that may (PR_SET_PTRACER). It ends when this process ends.

After a fork the child is watched by its parent's watcher, and `start` there gives that one; only the process that started it can
stop it. So `start` belongs before the workers of a pre-fork server are made, and does no harm in each of them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

log = logging.getLogger("sentinel_agent.library")

COMMAND_VARIABLE = "SENTINEL_AGENT_COMMAND"
"""What starts the agent, if it is installed elsewhere: a command line, for example `/opt/agent/bin/sentinel-agent`."""
INSTANCE_VARIABLE = "SENTINEL_TARGET_INSTANCE"
_PR_SET_PTRACER = 0x59616D61  # include/uapi/linux/prctl.h
_STOP_SECONDS = 5.0
_DUMP_SECONDS = 60.0
_LINES = 20
_MAX_LINE = 2000


class Watcher:
    """The agent that watches this process, running or not. Made by `start`; may be used from any thread."""

    def __init__(
        self, command: Sequence[str], options: Sequence[str], folder: str, instance: str | None = None
    ) -> None:
        """Remember what is started; `begin` starts it."""
        self._command = [*command]
        self._environment = {**os.environ, INSTANCE_VARIABLE: instance} if instance else None
        self._options = [*options]
        self._folder = folder
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._said: deque[str] = deque(maxlen=_LINES)
        self._stopped = False
        self._error = ""

    @property
    def pid(self) -> int | None:
        """The agent's process id; None if it was not started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the agent runs, as far as this process can tell."""
        if self._process is None or self._stopped:
            return False
        if self._owner != os.getpid():
            return Path(f"/proc/{self._process.pid}").exists()
        return self._process.poll() is None

    @property
    def error(self) -> str:
        """Why there is no agent, in words; empty while it runs and after `stop`."""
        if self._error or self._stopped or self.running or self._process is None:
            return self._error
        said = "; ".join(self._said)
        return f"the agent has ended with status {self._process.returncode}" + (f": {said}" if said else "")

    def stop(self) -> None:
        """End the agent, waiting for at most a few seconds. Does nothing the second time, and in a forked child."""
        if self._owner != os.getpid() or self._stopped:
            return
        self._stopped = True
        process = self._process
        if process is not None:
            with contextlib.suppress(OSError):
                process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            except OSError:
                pass
        self._clean_up()

    def dump(self, *kinds: str, wait: bool = False) -> str | None:
        """Save one incident of this process now, with these captures (none: the usual ones).

        With `wait` the incident's id, or None if there is none; else nothing is waited for. In a coroutine, wait in a thread.
        """
        command = [*self._command, "dump", str(os.getpid()), "--json", *self._dump_options()]
        if kinds:
            command += ["--capture", ",".join(kinds)]
        if wait:
            return self._dump(command)
        threading.Thread(target=self._dump, args=(command,), name="sentinel-agent-dump", daemon=True).start()
        return None

    def set_rules(self, rules: Iterable[Mapping[str, Any]]) -> None:
        """Replace the rules that were given to `start`; the agent reads them within a moment.

        Rules that it cannot use stay out, the old ones stay in force, and its log says why.
        """
        if not self._folder:
            log.warning(
                "the agent was started without rules of ours: give `rules=[]` to start, to set them later"
            )
            return
        try:
            _write_rules(self._folder, rules)
        except (OSError, TypeError, ValueError) as error:
            log.warning("the rules could not be handed to the agent: %s", error)

    def begin(self) -> None:
        """Start the agent's process; what goes wrong is in `error`."""
        command = [*self._command, "attach", str(os.getpid()), *self._options]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd="/",
                env=self._environment,
            )
        except (OSError, ValueError) as error:
            self._error = f"the agent cannot be started: {error}"
            log.warning("%s; the service goes on without it", self._error)
            self._clean_up()
            return
        allow(self._process.pid)
        threading.Thread(target=self._attend, name="sentinel-agent-watcher", daemon=True).start()

    def _attend(self) -> None:
        """Keep the last lines that the agent says, and take its exit status, so that it is no zombie."""
        process = self._process
        assert process is not None
        assert process.stderr is not None
        with contextlib.suppress(OSError, ValueError), process.stderr:
            while line := process.stderr.readline(_MAX_LINE):
                self._said.append(line.decode("utf-8", "replace").strip())
        with contextlib.suppress(OSError):
            status = process.wait()
            if not self._stopped:
                log.warning("the agent has ended with status %s; the service goes on without it", status)
        self._clean_up()

    def _dump_options(self) -> list[str]:
        return [word for word in self._options if word != "--any"]

    def _dump(self, command: list[str]) -> str | None:
        try:
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
            ) as process:
                allow(process.pid)
                try:
                    said, _ = process.communicate(timeout=_DUMP_SECONDS)
                finally:
                    process.kill()
                    if self._process is not None:
                        allow(self._process.pid)
            incident = json.loads(said)
            return str(incident["id"])
        except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
            log.warning("nothing was dumped: %s", error)
            return None

    def _clean_up(self) -> None:
        if self._folder and self._owner == os.getpid():
            shutil.rmtree(self._folder, ignore_errors=True)


_lock = threading.Lock()
_current: Watcher | None = None
_hooked = False


def start(
    *,
    service: str | None = None,
    instance: str | None = None,
    data_dir: str | None = None,
    config: str | None = None,
    rules: Iterable[Mapping[str, Any]] | None = None,
    allow_injection: bool = False,
    command: Sequence[str] | None = None,
) -> Watcher:
    """Start the agent beside this process, or give the one that runs already. Never raises and never waits for it.

    `service` and `instance` are the labels under which its incidents and metrics are found. `rules` are as in a rule file; without any, `set_rules` has nothing to replace. `command` what starts the agent (`SENTINEL_AGENT_COMMAND`, else this interpreter's own).
    """
    global _current  # noqa: PLW0603 - one watcher per process is what makes it idempotent
    with _lock:
        if _current is not None and _current.running:
            return _current
        _current = _start(
            service, instance, data_dir, config, rules, command, allow_injection=allow_injection
        )
        return _current


def _start(
    service: str | None,
    instance: str | None,
    data_dir: str | None,
    config: str | None,
    rules: Iterable[Mapping[str, Any]] | None,
    command: Sequence[str] | None,
    *,
    allow_injection: bool,
) -> Watcher:
    named = shlex.split(os.environ.get(COMMAND_VARIABLE, ""))
    given = {
        "--service": service,
        "--data-dir": data_dir and str(Path(data_dir).absolute()),
        "--config": config and str(Path(config).absolute()),
    }
    options = [word for name, value in given.items() if value for word in (name, str(value))]
    if allow_injection:
        options.append("--allow-injection")
    folder = ""
    try:
        if rules is not None:
            folder = tempfile.mkdtemp(prefix="sentinel-agent-")
            options += ["--rules", _write_rules(folder, rules)]
    except (OSError, TypeError, ValueError) as error:
        log.warning("the rules could not be handed to the agent: %s", error)
    watcher = Watcher(command or named or [sys.executable, "-m", "sentinel_agent"], options, folder, instance)
    _follow_forks()
    watcher.begin()
    return watcher


def _write_rules(folder: str, rules: Iterable[Mapping[str, Any]]) -> str:
    """A rule file that is whole at any moment; its path."""
    path = Path(folder, "rules.yaml")
    partial = path.with_suffix(".part")
    partial.write_text(
        json.dumps({"rules": [dict(rule) for rule in rules]}), encoding="utf-8"
    )  # JSON is YAML
    partial.replace(path)
    return str(path)


def allow(pid: int) -> None:
    """Say that process `pid` and its children may read this one; where nothing restricts that, nothing happens (EINVAL)."""
    with contextlib.suppress(OSError, AttributeError, ImportError):
        import ctypes  # noqa: PLC0415 - a service that never starts the agent does not pay for it

        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


def _follow_forks() -> None:
    global _hooked  # noqa: PLW0603 - a hook cannot be taken back, so there is one
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_in_child)
        atexit.register(_at_exit)


def _in_child() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()
    if _current is not None and _current.pid is not None:
        allow(_current.pid)


def _at_exit() -> None:
    if _current is not None:
        _current._clean_up()  # noqa: SLF001 - of this module
