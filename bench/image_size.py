"""How large the image is: `python -m bench.image_size`, as root, from a checkout where `make containers` has run.

Both targets of the Dockerfile are built on the Debian of the tests. What the base has is not ours; the rest is, by package. In
MiB as it lies on a disk, and compressed as a registry has it (gzip -6 of a tar).
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.containers.build import ROOTFS, workshop


def on_disk(path: Path) -> float:
    """MiB."""
    done = subprocess.run(["du", "-sxk", str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) / 1024


def compressed(path: Path) -> float:
    """MiB."""
    with subprocess.Popen(["tar", "-C", str(path), "-cz", "."], stdout=subprocess.PIPE) as packing:
        assert packing.stdout
        total = 0
        while chunk := packing.stdout.read(1 << 20):
            total += len(chunk)
    return total / 1024**2


def main() -> None:
    """Build, measure and print."""
    with (
        tempfile.TemporaryDirectory(prefix="sentinel-size-") as name,
        workshop(Path(name, "images")) as works,
    ):
        print(f"base: {on_disk(ROOTFS):.0f} MiB")
        for target in ("agent", "proxy"):
            ours = works.build(target).root / "opt" / "sentinel"
            print(f"{target}: {on_disk(ours):.0f} MiB of our own, {compressed(ours):.0f} MiB compressed")
            (packages,) = ours.glob("lib/python3*/site-packages")
            found = sorted(
                ((on_disk(path), path.name) for path in packages.iterdir() if path.is_dir()), reverse=True
            )
            print("  " + ", ".join(f"{package} {size:.1f}" for size, package in found[:10]), flush=True)


if __name__ == "__main__":
    main()
