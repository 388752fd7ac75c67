"""Hot reload: what counts as a change, and that a faulty configuration never replaces a good one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.config.files import fingerprint, read_file
from sentinel_agent.config.load import ConfigInputs, attempt, load
from sentinel_agent.config.watch import FileWatch, Reloader, changed

if TYPE_CHECKING:
    import pytest

FAR = 4_000_000_000.0  # wall time at which every time stamp is old


def config(level: str) -> str:
    return f"rule_packs: []\nlog: {{level: {level}}}\n"


def reloader(path: Path) -> Reloader:
    inputs = ConfigInputs(files=(path,))
    return Reloader(inputs, load(inputs))


def poll(it: Reloader, times: int = 2) -> str | None:
    """The log level that came into force within so many polls."""
    came = [found for found in (it.poll(FAR) for _ in range(times)) if found]
    assert len(came) <= 1
    return came[0].settings.log.level if came else None


@given(*[st.dictionaries(st.sampled_from([Path("a"), Path("b")]), st.sampled_from("xy"))] * 3)
def test_decision(now: dict[Path, str], before: dict[Path, str], accepted: dict[Path, str]) -> None:
    """A change is a quiet poll that differs from what is loaded."""
    if changed(now, before, accepted):
        assert now == before
        assert now != accepted


def test_written_in_place(tmp_path: Path) -> None:
    """A changed file is loaded on the second poll that sees it, once."""
    path = tmp_path / "c.yaml"
    path.write_text(config("info"))
    it = reloader(path)
    assert poll(it) is None
    path.write_text(config("debug"))
    assert it.poll(FAR) is None
    assert poll(it, 1) == "debug"
    assert poll(it, 5) is None
    assert it.reloads == 1


def test_touched(tmp_path: Path) -> None:
    """A new time stamp on the same content is no change."""
    path = tmp_path / "c.yaml"
    path.write_text(config("info"))
    it = reloader(path)
    os.utime(path, (1, 1))
    assert poll(it, 3) is None


def test_kubernetes_symlink_swap(tmp_path: Path) -> None:
    """A mounted ConfigMap changes when its `..data` link is renamed over; the file's own link stays as it is."""
    for version, level in (("..v1", "info"), ("..v2", "error")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "c.yaml").write_text(config(level))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / "c.yaml").symlink_to("..data/c.yaml")
    it = reloader(tmp_path / "c.yaml")
    assert poll(it) is None
    (tmp_path / "..data_tmp").symlink_to("..v2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    for file in ((tmp_path / "..v1" / "c.yaml"), (tmp_path / "..v1")):
        file.unlink() if file.is_file() else file.rmdir()
    assert poll(it) == "error"


def test_renamed_over(tmp_path: Path) -> None:
    """An editor that writes a new file and renames it over the old one is seen."""
    path = tmp_path / "c.yaml"
    path.write_text(config("info"))
    it = reloader(path)
    (tmp_path / "c.yaml~").write_text(config("debug"))
    (tmp_path / "c.yaml~").rename(path)
    assert poll(it) == "debug"


def test_deleted_and_made_again(tmp_path: Path) -> None:
    """While the file is gone the old configuration stays and the fault is known; when it is back it is loaded."""
    path = tmp_path / "c.yaml"
    path.write_text(config("info"))
    it = reloader(path)
    path.unlink()
    assert poll(it, 4) is None
    assert (
        it.last_error == f"1 fault in the configuration\n  {path}: cannot be read: No such file or directory"
    )
    assert it.loaded.settings.log.level == "info"
    path.write_text(config("info"))
    assert poll(it) == "info"
    assert it.last_error is None


def test_faulty_change_is_refused(tmp_path: Path) -> None:
    """A faulty file leaves the old configuration in force, with the fault in words, until it is mended."""
    path = tmp_path / "c.yaml"
    path.write_text(config("info"))
    it = reloader(path)
    path.write_text(config("loud"))
    assert poll(it, 4) is None
    assert it.last_error
    assert "log.level" in it.last_error
    path.write_text(config("error"))
    assert poll(it) == "error"
    assert it.last_error is None


def test_back_to_the_old_content(tmp_path: Path) -> None:
    """Undoing a faulty change clears the fault."""
    path = tmp_path / "c.yaml"
    path.write_text(config("info"))
    it = reloader(path)
    path.write_text("[")
    poll(it)
    path.write_text(config("info"))
    assert poll(it) == "info"
    assert it.last_error is None


def test_half_written(tmp_path: Path) -> None:
    """A file that is still growing is not loaded; the poll after it came to rest loads it."""
    path = tmp_path / "c.yaml"
    path.write_text(config("info"))
    it = reloader(path)
    text = config("error")
    for end in range(5, len(text), 5):
        path.write_text(text[:end])
        assert it.poll(FAR) is None
    path.write_text(text)
    assert it.poll(FAR) is None
    assert it.last_error is None
    assert poll(it, 1) == "error"


def test_changed_while_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content that was not seen at rest is not taken, even if the loader reads it."""
    path = tmp_path / "c.yaml"
    path.write_text(config("info"))
    it = reloader(path)
    path.write_text(config("error"))
    it.poll(FAR)

    def late(inputs: ConfigInputs) -> object:
        path.write_text(config("debug"))
        return attempt(inputs)

    with monkeypatch.context() as patch:
        patch.setattr("sentinel_agent.config.watch.attempt", late)
        assert it.poll(FAR) is None
    assert it.loaded.settings.log.level == "info"
    assert poll(it) == "debug"


def test_rule_files_are_watched(tmp_path: Path) -> None:
    """A rule file is watched as soon as the configuration names it, there or not."""
    path, rules = tmp_path / "c.yaml", tmp_path / "r.yaml"
    path.write_text(config("info"))
    it = reloader(path)
    path.write_text(config("debug") + "rule_files: [r.yaml]\n")
    assert poll(it) is None
    assert it.last_error
    rules.write_text("rules: [{name: a, metric: cpu, trigger: {abs: 1}}]")
    assert poll(it) == "debug"
    assert [item.rule.name for item in it.loaded.rules] == ["a"]
    rules.write_text("rules: []")
    assert poll(it) == "debug"
    assert it.loaded.rules == ()


def test_our_own_fault_does_not_end_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the loader itself raise, that is shown and the old configuration stays."""
    path = tmp_path / "c.yaml"
    path.write_text(config("info"))
    it = reloader(path)

    def broken(inputs: ConfigInputs) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr("sentinel_agent.config.watch.attempt", broken)
    path.write_text(config("debug"))
    assert poll(it, 4) is None
    assert it.last_error == "the configuration could not be loaded: ZeroDivisionError()"


def test_old_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read once while its time stamps stay, but every time while they are too young to be trusted."""
    path = tmp_path / "c.yaml"
    path.write_text("x")
    reads: list[Path] = []

    def counted(file: Path) -> bytes:
        reads.append(file)
        return read_file(file)

    monkeypatch.setattr("sentinel_agent.config.watch.read_file", counted)
    it = FileWatch()
    for _ in range(3):
        assert it.snapshot([path], FAR) == {path: fingerprint(b"x")}
    assert len(reads) == 1
    young = FileWatch()
    for _ in range(3):
        young.snapshot([path], path.stat().st_ctime)
    assert len(reads) == 4
