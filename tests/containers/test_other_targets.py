"""Targets that are not an ordinary Debian: without a shell, and with another C library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers.build import CHECKOUT
from tests.containers.pod import agent_box, ask, target
from tests.needs import missing

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(300)

MUSL = CHECKOUT / ".cache" / "musl-python" / "root"


@pytest.fixture
def distroless(rootfs: Path, tmp_path: Path) -> Path:
    """A root with the interpreter, its library and what the loader needs for both, and nothing else that could be started."""
    root = tmp_path / "distroless"
    version = Path(os.readlink(rootfs / "usr/bin/python3")).name  # noqa: PTH115 - not to be resolved: it is another root
    needed = subprocess.run(
        ["chroot", str(rootfs), "ldd", f"/usr/bin/{version}"], capture_output=True, text=True, check=True
    ).stdout
    files = [word for line in needed.splitlines() for word in line.split() if word.startswith("/")]
    for name in (f"/usr/bin/{version}", *files):
        source = rootfs / name.lstrip("/")
        (root / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(
            source.resolve() if str(source.resolve()).startswith(str(rootfs)) else source,
            root / name.lstrip("/"),
        )
    shutil.copytree(rootfs / "usr/lib" / version, root / "usr/lib" / version, symlinks=True)
    (root / "usr/bin/python3").symlink_to(version)
    for folder in ("proc", "dev", "sys", "tmp", "srv"):
        (root / folder).mkdir()
    programs = [path.name for path in (root / "usr/bin").iterdir()]
    assert sorted(programs) == ["python3", version]
    assert not (root / "bin").exists()
    return root


@pytest.fixture
def musl() -> Path:
    """A root with a CPython that was built for musl, and musl."""
    if not MUSL.exists():
        missing(f"there is no {MUSL}: `make interop` builds it")
    return MUSL


def examined(image: Path, root: Path, folder: Path, command: tuple[str, ...]) -> dict[str, Any]:
    """An incident by hand of a target that burns, as `incidents show` has it, and its threads while it waits."""
    with target(root, folder, command=command) as neighbour:
        ran = run_verb(image, folder, neighbour.container.pid)
        threads = json.loads(ran("stacks", "1", "--json"))["threads"]
        assert [frame["function"] for frame in threads[0]["frames"]][-2:] == ["main", "<module>"]
        checks = {check["name"]: check for check in json.loads(ran("doctor", "1", "--json"))}
        assert checks["python"]["ok"] is True
        neighbour.burn(20)
        done = json.loads(
            ran("dump", "1", "--capture", "stacks,profile,process", "--duration", "1s", "--json")
        )
    assert isinstance(done, dict)
    return done


def run_verb(image: Path, folder: Path, pod: int) -> Callable[..., str]:
    return lambda *words: ask(agent_box(image, folder, *words, pod=pod), folder)


@pytest.mark.interop
def test_a_target_without_a_shell(image: Path, distroless: Path, tmp_path: Path) -> None:
    """Nothing is ever started in the target's container: stacks, profile and process are captured all the same."""
    document = examined(image, distroless, tmp_path, ("/usr/bin/python3", "/srv/obedient.py"))
    assert {report["kind"]: report["status"] for report in document["captures"]} == dict.fromkeys(
        ("stacks", "profile", "process", "series"), "ok"
    ), document["captures"]


@pytest.mark.interop
@pytest.mark.usefixtures("rootfs")
def test_a_target_with_musl(image: Path, musl: Path, tmp_path: Path) -> None:
    """A CPython that was built for musl, as Alpine's is (it has no extension modules, so no asyncio): our reader and py-spy read it like any other."""
    document = examined(image, musl, tmp_path, ("/opt/musl-python/bin/python3", "/srv/obedient.py"))
    statuses = {report["kind"]: report["status"] for report in document["captures"]}
    assert statuses == dict.fromkeys(("stacks", "profile", "process", "series"), "ok"), document["captures"]
