"""The manifests are what Kubernetes takes, ask for no more rights than they say, and fit the program.

They are rendered by kubectl's kustomize and by helm themselves (`tools/kubernetes.sh`).
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sentinel_agent.cli import _VERBS
from sentinel_agent.config.load import ConfigInputs, load
from tests.needs import missing

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".cache" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "sentinel-agent"
SERVICE_CHART = Path(__file__).parent / "gateway-chart"
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
# The oldest release with native sidecars, the newest, and two between.
VERSIONS = ("1.29", "1.31", "1.33", kubernetes_validate.latest_version())
OLDER = ("--set", "sentinel-agent.sidecar.native=false")
RENDERINGS: dict[str, tuple[str, ...]] = {
    "kustomize: sidecar": ("kustomize", "sidecar"),
    "kustomize: sidecar-older": ("kustomize", "sidecar-older"),
    "kustomize: node": ("kustomize", "node"),
    "helm: node": ("helm", "node"),
    "helm: sidecar": ("helm", "sidecar"),
    "helm: sidecar-older": ("helm", "sidecar-older"),
}


def tool(name: str) -> str:
    path = TOOLS / name
    if not path.exists():
        missing(f"there is no {path}: `make unit` fetches it")
    return str(path)


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@functools.cache
def rendered(name: str) -> tuple[dict[str, Any], ...]:
    """The documents of one way of deploying."""
    by, what = RENDERINGS[name]
    if by == "kustomize":
        found = call(tool("kubectl"), "kustomize", str(ROOT / "deploy" / "k8s" / what))
    elif what == "node":
        found = call(tool("helm"), "template", "r", str(CHART))
    else:
        with tempfile.TemporaryDirectory() as folder:
            chart = Path(shutil.copytree(SERVICE_CHART, Path(folder, "gateway")))
            shutil.copytree(CHART, chart / "charts" / CHART.name)
            options = OLDER if what == "sidecar-older" else ()
            found = call(tool("helm"), "template", "r", str(chart), *options)
    return tuple(document for document in yaml.safe_load_all(found) if document)


def workload(name: str) -> dict[str, Any]:
    """The deployment or daemon set."""
    (found,) = (document for document in rendered(name) if document["kind"] != "ConfigMap")
    return found


def agent(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod and the agent's container, of which there is one."""
    pod = workload(name)["spec"]["template"]["spec"]
    containers = (*pod.get("initContainers", ()), *pod["containers"])
    (container,) = (each for each in containers if each["name"] == "sentinel-agent")
    return pod, container


def size(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]  # a manifest of ours
    return int(number) * UNITS[unit]


@pytest.mark.parametrize("name", RENDERINGS)
def test_kubernetes_takes_them(name: str) -> None:
    """Against the OpenAPI schemas of four releases; no unknown key."""
    for version in VERSIONS:
        for document in rendered(name):
            kubernetes_validate.validate(document, version, strict=True)


def test_helm_finds_nothing_to_mend() -> None:
    """`helm lint --strict`, and a value that the chart does not know is refused."""
    call(tool("helm"), "lint", "--strict", str(CHART))
    wrong = ("--set", "daemonSet.tolerate=all")
    done = subprocess.run(
        [tool("helm"), "template", str(CHART), *wrong], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "tolerate" in done.stderr


@pytest.mark.parametrize("name", RENDERINGS)
def test_the_agent_has_one_capability_and_nothing_else(name: str) -> None:
    """No privileged mode, not root, nothing written outside its volumes."""
    pod, container = agent(name)
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


@pytest.mark.parametrize("name", RENDERINGS)
def test_the_agent_holds_up_no_pod(name: str) -> None:
    """No probe that a pod waits for, nothing that must exist, no image that must be pulled, and native only where it says so."""
    pod, container = agent(name)
    if "node" not in name:
        assert "startupProbe" not in container
        assert "readinessProbe" not in container
    assert container["imagePullPolicy"] == "IfNotPresent"
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        assert source.get("secretKeyRef", {"optional": True})["optional"]
    for volume in pod["volumes"]:
        assert volume.get("configMap", {"optional": True})["optional"]
    native = [each["name"] for each in pod.get("initContainers") or ()]
    assert native == (["sentinel-agent"] if name.endswith(": sidecar") else [])
    assert container.get("restartPolicy") == ("Always" if native else None)


@pytest.mark.parametrize("name", RENDERINGS)
def test_what_is_kept_fits_the_volume(name: str, tmp_path: Path) -> None:
    """Incidents and recorded stacks together stay under the volume's limit, with the configuration that is shipped, which is sound."""
    (config_map,) = (document for document in rendered(name) if document["kind"] == "ConfigMap")
    pod, container = agent(name)
    (tmp_path / "sentinel.yaml").write_text(config_map["data"]["sentinel.yaml"])
    settings = load(ConfigInputs(files=(tmp_path / "sentinel.yaml",))).settings
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/etc/sentinel-agent"]]["configMap"]["name"] == config_map["metadata"]["name"]
    kept = settings.store.max_bytes + settings.recorder.spool_bytes
    assert kept * 1.5 <= size(volumes[mounts["/var/lib/sentinel-agent"]]["emptyDir"]["sizeLimit"])


@pytest.mark.parametrize("name", RENDERINGS)
def test_its_variables_are_settings(name: str) -> None:
    """Every SENTINEL_ variable of a manifest is one that the program knows."""
    known = set(re.findall(r"`(SENTINEL_\w+)`", (ROOT / "docs" / "configuration.md").read_text()))
    _, container = agent(name)
    assert {variable["name"] for variable in container["env"]} <= known


def test_both_ways_give_the_agent_the_same() -> None:
    """The chart's container is the one of the manifests, but for the label that names the service."""
    for where in ("node", "sidecar", "sidecar-older"):
        ours, theirs = (agent(f"{by}: {where}")[1] for by in ("kustomize", "helm"))
        assert {**ours, "env": 0, "image": 0} == {**theirs, "env": 0, "image": 0}
        assert {each["name"] for each in ours["env"]} == {each["name"] for each in theirs["env"]}
