"""The manifests are what Kubernetes takes, ask for no more rights than they say, and fit the program."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from sentinel_agent.cli import _VERBS
from sentinel_agent.config.load import ConfigInputs, load

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "k8s"
WORKLOADS = ("sidecar.yaml", "daemonset.yaml")
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


def agents(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The pod and the agent's container."""
    pod = document(name)["spec"]["template"]["spec"]
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        if container["name"] == "sentinel-agent":
            yield pod, container


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]  # a manifest of ours
    return int(number) * UNITS[unit]


@pytest.mark.parametrize("version", ["1.29", "1.31", "1.33", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", WORKLOADS)
def test_kubernetes_takes_them(name: str, version: str) -> None:
    """Against the OpenAPI schema of the oldest release with native sidecars, of the newest, and two between; no unknown key."""
    kubernetes_validate.validate(document(name), version, strict=True)


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_agent_has_one_capability_and_nothing_else(name: str) -> None:
    """No privileged mode, not root, nothing written outside its volumes."""
    ((pod, container),) = agents(name)
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod.get("shareProcessNamespace") or pod.get("hostPID")
    assert container["args"][0] in _VERBS


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_is_kept_fits_the_volume(name: str) -> None:
    """Incidents and recorded stacks together stay under the volume's limit, with the configuration that is shipped."""
    settings = load(ConfigInputs(files=(FOLDER / "sentinel.yaml",))).settings
    ((pod, container),) = agents(name)
    (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == "/var/lib/sentinel-agent")
    (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
    kept = settings.store.max_bytes + settings.recorder.spool_bytes
    assert kept * 1.5 <= size(volume["emptyDir"]["sizeLimit"])


@pytest.mark.parametrize("name", WORKLOADS)
def test_its_variables_are_settings(name: str) -> None:
    """Every SENTINEL_ variable of a manifest is one that the program knows."""
    known = set(re.findall(r"`(SENTINEL_\w+)`", (ROOT / "docs" / "configuration.md").read_text()))
    ((_, container),) = agents(name)
    assert {variable["name"] for variable in container["env"]} <= known


def test_the_base_names_files_that_are_there() -> None:
    """kustomize would refuse others."""
    base = document("kustomization.yaml")
    (generator,) = base["configMapGenerator"]
    for name in (*base["resources"], *generator["files"]):
        assert (FOLDER / name).is_file(), name
