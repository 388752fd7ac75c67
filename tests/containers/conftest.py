"""The image, built by buildah from the Dockerfile on a base of our own, and a root file system for targets."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.needs import missing, program

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
ROOTFS = (CHECKOUT / ".cache" / "rootfs" / "root").resolve()
# What a build behind a registry mirror needs of this machine; nothing of it stays in the image.
BUILD_MOUNTS = ("/etc/ssl/certs", "/etc/pip.conf")


@pytest.fixture(scope="session")
def rootfs() -> Path:
    """A Debian with Python, for targets."""
    if os.geteuid() != 0:
        pytest.skip("only root can make and run containers here")
    if not ROOTFS.exists():
        missing("no root file system: `make containers` makes it")
    return ROOTFS


@pytest.fixture(scope="session")
def image(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of the image's `agent` target, as a registry would hand it out."""
    folder = tmp_path_factory.mktemp("images")
    buildah = (program("buildah"), "--root", str(folder / "storage"), "--runroot", str(folder / "run"))

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [*buildah, *arguments], capture_output=True, text=True, timeout=600, check=False, cwd=CHECKOUT
        )
        assert done.returncode == 0, (arguments, done.stderr[-3000:])
        return done.stdout.strip()

    base = call("from", "scratch")
    call("add", "-q", base, str(rootfs), "/")
    call("commit", "-q", base, "localhost/base")
    mounts = [f"--volume={path}:{path}:ro" for path in BUILD_MOUNTS if Path(path).exists()]
    call(
        *(
            "bud",
            "-q",
            "--isolation",
            "chroot",
            "--pull-never",
            *mounts,
            "--target",
            "agent",
            "-t",
            "localhost/agent",
        ),
        *("--build-arg", "BASE=localhost/base", "--ignorefile", "deploy/Dockerfile.dockerignore"),
        *("-f", "deploy/Dockerfile", "."),
    )
    yield Path(call("mount", call("from", "localhost/agent")))
    call("umount", "--all")
    call("rm", "--all")
    call("rmi", "--all", "--force")
    shutil.rmtree(folder, ignore_errors=True)
