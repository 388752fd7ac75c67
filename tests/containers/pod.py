"""A pod: the service in a container of its own, and the agent's container beside it, as the manifests have them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.containers.bundle import Box, Container, running
from tests.e2e.support import HERE, RULE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AGENT, SERVICE = 65532, 1000
MEMORY = 64 * 1024**2
CONFIG = RULE.format(capture="[{kind: stacks, duration: 500ms}, profile, tasks, process]") + (
    "sampler: {interval: 500ms}\n"
)


class Target:
    """`obedient.py` in a container of its own, as a user of its own."""

    def __init__(self, container: Container) -> None:
        self.container = container
        assert container.process.stdout
        assert container.process.stdout.readline()

    def burn(self, seconds: int) -> None:
        assert self.container.process.stdin
        self.container.process.stdin.write(f"burn {seconds}\n")
        self.container.process.stdin.flush()

    def answer(self) -> str:
        """What it says next."""
        assert self.container.process.stdout
        return self.container.process.stdout.readline().strip()


@contextmanager
def target(rootfs: Path, folder: Path, *, watched: bool = False, **options: Any) -> Iterator[Target]:
    """The neighbour; the pid namespace is its own, and the agent's too where it is told so."""
    box = Box(
        root=rootfs,
        uid=SERVICE,
        binds={"/srv": HERE},
        environment={
            "OTEL_SERVICE_NAME": "payments",
            "HOSTNAME": "pod-7",
            **({"SENTINEL_WATCH": "true"} if watched else {}),
        },
        **({"command": ("/usr/bin/python3", "/srv/obedient.py")} | options),
    )
    with running(box, folder) as container:
        yield Target(container)


def agent_box(
    image: Path, folder: Path, *command: str, interpreter: tuple[str, ...] = (), **options: Any
) -> Box:
    """The agent as the manifests start it: not root, a root file system that cannot be written, a small memory limit."""
    data, config = folder / "data", folder / "config"
    data.mkdir(exist_ok=True)
    os.chown(data, AGENT, AGENT)
    config.mkdir(exist_ok=True)
    (config / "sentinel.yaml").write_text(CONFIG)
    settings: dict[str, Any] = {
        "uid": AGENT,
        "capabilities": ("CAP_SYS_PTRACE",),
        "memory": MEMORY,
        "binds": {"/var/lib/sentinel-agent": data, "/etc/sentinel-agent": config},
        "writable": frozenset({"/var/lib/sentinel-agent"}),
        "environment": {
            "SENTINEL_DATA_DIR": "/var/lib/sentinel-agent",
            "SENTINEL_CONFIG": "/etc/sentinel-agent/sentinel.yaml",
            "PYTHONDONTWRITEBYTECODE": "1",
            **({"PYTHONPATH": _packages(image)} if interpreter else {}),
        },
    }
    program = (*interpreter, "/opt/sentinel/bin/sentinel-agent", *command)
    return Box(root=image, command=program, **(settings | options))


def _packages(image: Path) -> str:
    (folder,) = image.glob("opt/sentinel/lib/python3*/site-packages")
    return f"/{folder.relative_to(image)}"


def ask(box: Box, folder: Path) -> str:
    """What a verb in a container of its own prints."""
    with running(box, folder) as container:
        return container.process.communicate(timeout=60)[0]
