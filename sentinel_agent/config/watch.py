"""Hot reload: see that a file changed, load everything again, and keep the old configuration if the new one is faulty.

Files are polled, not watched with inotify: a poll sees every way in which files change alike (written in place,
renamed over by an editor, deleted and made again, a mounted ConfigMap whose `..data` link is swapped, a network
file system). What is compared is the content that a path leads to, so touching a file is no change. A change counts
once two polls in a row see the same content, so a half-written file is not loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sentinel_agent.config.files import fingerprint, read_file
from sentinel_agent.config.load import ConfigInputs, Loaded, attempt
from sentinel_agent.errors import ConfigError, OperatorError

if TYPE_CHECKING:
    import os

_SETTLED = 2.0  # seconds after which the time stamps of a file tell every later write apart

Snapshot = Mapping[Path, str]
"""The fingerprint of each file's content, or why it could not be read."""


def changed(now: Snapshot, before: Snapshot, accepted: Snapshot) -> bool:
    """Whether to load again: the files differ from what was loaded, and are as they were one poll before."""
    return now != accepted and now == before


@dataclass(frozen=True, slots=True)
class _Known:
    stamp: tuple[int, ...]
    mark: str


class FileWatch:
    """Takes snapshots; a file is only read again when its time stamps changed or are too young to be trusted."""

    def __init__(self) -> None:
        self._known: dict[Path, _Known] = {}

    def snapshot(self, paths: Iterable[Path], now: float) -> Snapshot:
        """The files as they are; `now` is wall time in seconds. Never raises."""
        known, self._known = self._known, {}
        return {path: self._look(path, known.get(path), now) for path in paths}

    def _look(self, path: Path, known: _Known | None, now: float) -> str:
        found = _stat(path)
        stamp = found and (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if known and known.stamp == stamp:
            mark = known.mark
        else:
            try:
                mark = fingerprint(read_file(path))
            except OperatorError as error:
                mark = error.message
        if found and stamp and abs(now - found.st_ctime) > _SETTLED:
            self._known[path] = _Known(stamp, mark)
        return mark


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


class Reloader:
    """Keeps the configuration in force. Not safe to use from two threads at once; `poll` reads files."""

    def __init__(self, inputs: ConfigInputs, loaded: Loaded) -> None:
        self.loaded = loaded
        self.last_error: str | None = None
        self.reloads = 0
        self._inputs = inputs
        self._accepted: Snapshot = loaded.files
        self._before: Snapshot = loaded.files
        self._watch = FileWatch()

    def poll(self, now: float) -> Loaded | None:
        """The configuration that came into force with this poll, or None. `now` is wall time. Never raises.

        If the files changed but are faulty, `last_error` says how until they are valid again, and `loaded` stays.
        """
        seen = self._watch.snapshot(self._accepted, now)
        before, self._before = self._before, seen
        if not changed(seen, before, self._accepted):
            return None
        try:
            done = attempt(self._inputs)
        except Exception as error:  # noqa: BLE001 - our own fault must not end the agent; it is shown instead
            self.last_error = f"the configuration could not be loaded: {error!r:.500}"
            self._accepted = seen
            return None
        if any(seen.get(path, mark) != mark for path, mark in done.files.items()):
            return None  # it changed once more while it was loaded: wait for the next quiet poll
        self._accepted = self._before = done.files
        if done.loaded is None:
            self.last_error = str(ConfigError(list(done.faults)))
            return None
        self.loaded, self.last_error = done.loaded, None
        self.reloads += 1
        return done.loaded


_LIVE = ("sampler", "capture", "postmortem", "store", "overhead", "exporters")
_AT_START = ("target", "recorder", "limits", "data_dir", "listen", "log")


def differences(before: Loaded, after: Loaded) -> tuple[str, ...]:
    """What a reload changes, in words; also what is only in force after a restart."""
    old = {each.rule.name: each.rule for each in before.rules}
    new = {each.rule.name: each.rule for each in after.rules}
    differ = {
        name
        for name in (*_LIVE, *_AT_START)
        if getattr(before.settings, name) != getattr(after.settings, name)
    }
    return (
        *(f"rule {name} added" for name in new if name not in old),
        *(f"rule {name} removed" for name in old if name not in new),
        *(f"rule {name} changed" for name in new if name in old and new[name] != old[name]),
        *(f"settings of {name}" for name in _LIVE if name in differ),
        *(f"settings of {name} (in force after a restart)" for name in _AT_START if name in differ),
    )
