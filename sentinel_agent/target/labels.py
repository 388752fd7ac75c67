"""What a process calls itself: service and instance, where the operator did not say.

`OTEL_SERVICE_NAME` is OpenTelemetry's variable for the service (specification, SDK environment variables). `HOSTNAME` is the
pod's name in a container; it counts only for a process in another container than the agent, because only there the agent's
own host name would be the wrong one. Containers are told apart by the ids in the cgroup paths (cgroups(7)).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sentinel_agent.target.criteria import environment_of
from sentinel_agent.target.procfs import text

if TYPE_CHECKING:
    from sentinel_agent.target.procfs import ProcDir

_CONTAINER = re.compile(r"[0-9a-f]{64}")
_SHORT = 12
_MAX_LABEL = 100
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Labels:
    """Names as a process has them itself, and the id of its container (64 hexadecimal digits); None: it has none."""

    service: str | None = None
    host: str | None = None
    container: str | None = None

    def instance(self, own_container: str | None) -> str | None:
        """The instance of a process in another container than the agent's: its host name, else the container."""
        if self.container is None or self.container == own_container:
            return None
        return self.host or self.container[:_SHORT]


NO_LABELS = Labels()


def labels_of(proc: ProcDir) -> Labels:
    """The labels of a process. What may not be read counts as not there."""
    try:
        environment = environment_of(proc, ("OTEL_SERVICE_NAME", "HOSTNAME"))
    except OSError:
        environment = {}
    service, host = (safe_label(environment.get(name, "")) for name in ("OTEL_SERVICE_NAME", "HOSTNAME"))
    return Labels(service, host, container_of(proc))


def container_of(proc: ProcDir) -> str | None:
    """The id of a process's container, as the runtimes write it into the cgroup path; None outside of containers."""
    try:
        found = _CONTAINER.findall(text(proc.read("cgroup")))
    except OSError:
        return None
    return found[-1] if found else None


def safe_label(value: str) -> str | None:
    """A name without what could be mistaken in a path, a metric or a terminal; None if nothing is left."""
    return _UNSAFE.sub("-", value).strip("-")[:_MAX_LABEL] or None
