"""The image, built by buildah from the Dockerfile on a base of our own: no registry of images is needed, nor a daemon."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.needs import program

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
ROOTFS = (CHECKOUT / ".cache" / "rootfs" / "root").resolve()
# What a build behind a registry mirror needs of this machine; nothing of it stays in the image.
BUILD_MOUNTS = ("/etc/ssl/certs", "/etc/pip.conf")


@dataclass(frozen=True, slots=True)
class Image:
    """One target of the Dockerfile: its root file system, and its configuration as Docker has it."""

    root: Path
    configuration: dict[str, Any]


class Workshop:
    """Where images are built; they share the stages that they have in common."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._buildah = (
            program("buildah"),
            "--root",
            str(folder / "storage"),
            "--runroot",
            str(folder / "run"),
        )
        base = self("from", "scratch")
        self("add", "-q", base, str(ROOTFS), "/")
        self("commit", "-q", base, "localhost/base")
        self("rm", base)

    def __call__(self, *arguments: str) -> str:
        """What a call of buildah prints."""
        done = subprocess.run(
            [*self._buildah, *arguments],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            cwd=CHECKOUT,
        )
        assert done.returncode == 0, (arguments, done.stderr[-3000:])
        return done.stdout.strip()

    def build(self, target: str) -> Image:
        """Build one target of the Dockerfile in Docker's format, which has room for a health check, and mount it."""
        mounts = [f"--volume={path}:{path}:ro" for path in BUILD_MOUNTS if Path(path).exists()]
        self(
            *(
                "bud",
                "-q",
                "--isolation",
                "chroot",
                "--pull-never",
                "--layers",
                "--format",
                "docker",
                *mounts,
            ),
            *("--target", target, "-t", f"localhost/{target}"),
            *("--build-arg", "BASE=localhost/base", "--ignorefile", "deploy/Dockerfile.dockerignore"),
            *("--build-arg", "VERSION=1.2.3", "-f", "deploy/Dockerfile", "."),
        )
        inspected = json.loads(self("inspect", "--type", "image", f"localhost/{target}"))
        root = Path(self("mount", self("from", f"localhost/{target}")))
        return Image(root, inspected["Docker"]["config"])

    def close(self) -> None:
        """Remove everything."""
        self("umount", "--all")
        self("rm", "--all")
        self("rmi", "--all", "--force")
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def workshop(folder: Path) -> Iterator[Workshop]:
    """A workshop, gone with all images at the end."""
    made = Workshop(folder)
    try:
        yield made
    finally:
        made.close()
