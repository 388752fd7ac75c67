"""The image does its whole job with the least rights that can work, and says which right is missing where one is."""

from __future__ import annotations

import json
import os
import re
import urllib.error
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.containers.bundle import running
from tests.containers.pod import CONFIG, MEMORY, SERVICE, Target, agent_box, ask, target
from tests.e2e.support import AgentProcess, free_port, get, listening, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.containers.build import Image, Workshop

pytestmark = pytest.mark.timeout(600)

OTHER_PYTHON = ("/usr/bin/python3",)
PROXY = """
listeners:
  - name: web
    address: 127.0.0.1:{port}
    routes:
      - name: rest
        response: {{status: 404, body: "nothing here"}}
"""


@pytest.mark.containers
def test_the_main_job_with_only_the_right_to_read_others(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """User 65532 with CAP_SYS_PTRACE beside user 1000: spike noticed, stacks before it, py-spy's profile, all in 64 MiB."""
    with target(rootfs, tmp_path) as neighbour:
        pod = neighbour.container.pid
        with running(agent_box(image, tmp_path, "sidecar", "--json", pod=pod), tmp_path) as container:
            agent = AgentProcess(container.process)
            appeared = agent.wait_for("target_appeared")["target"]
            assert (appeared["service"], appeared["instance"]) == ("payments", "pod-7")
            assert appeared["pid"] == 1, "in the shared pid namespace the target is the first process"
            _wait_warm(agent, neighbour)
            sealed = agent.wait_for("incident_sealed", seconds=60)
            incident = sealed["incident"]
            assert {report["kind"]: report["status"] for report in incident["captures"]} == {
                "stacks": "ok",
                "profile": "ok",
                "tasks": "ok",
                "process": "ok",
                "series": "ok",
            }, incident["captures"]
            assert incident["longest_pause_us"] == 0
            assert 0 < container.memory("memory.max_usage_in_bytes") <= MEMORY
    shown = ask(agent_box(image, tmp_path, "incidents", "show", incident["id"]), tmp_path)
    assert "burn" in "\n".join(shown.splitlines()[:3]), shown


def _wait_warm(agent: AgentProcess, neighbour: Target) -> None:
    """A spike fires once the rule has its readings; until then short ones are made in vain."""
    for _ in range(20):
        neighbour.burn(3)
        try:
            agent.wait_for("incident_opened", seconds=6)
        except AssertionError:
            continue
        return
    raise AssertionError(agent.events)


# What is missing or in the way, the line of `doctor` that says so, and what its remedy says to do instead.
UNDUMPABLE = (
    "import ctypes, runpy; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); runpy.run_path('/srv/obedient.py')"
)
OBSTACLES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a target that is not dumpable": ("dumpable", {"capabilities": (), "uid": SERVICE}, {}),
    "another user, no capability": ("owner", {"capabilities": ()}, {}),
    "the target's own user instead": ("owner", {"capabilities": ()}, {"capabilities": (), "uid": SERVICE}),
    "an interpreter without the capability": ("CAP_SYS_PTRACE", {"interpreter": OTHER_PYTHON}, {}),
    "the same as root": (
        "CAP_SYS_PTRACE",
        {"interpreter": OTHER_PYTHON},
        {"interpreter": OTHER_PYTHON, "uid": 0},
    ),
    "no escalation of privileges": ("owner", {"capabilities": ()}, {"no_new_privileges": True}),
    "a seccomp filter": ("process_vm_readv", {"forbidden_calls": ("process_vm_readv",)}, {}),
    "a hidden /proc": (
        "hidepid",
        {"capabilities": (), "proc_options": ("hidepid=2",)},
        {"proc_options": ("hidepid=2",)},
    ),
}


@pytest.mark.containers
@pytest.mark.parametrize("case", OBSTACLES)
def test_a_missing_right_is_named_and_its_remedy_works(
    image: Path, rootfs: Path, tmp_path: Path, case: str
) -> None:
    """Doctor's advice, followed to the letter, makes the target readable."""
    name, broken, mended = OBSTACLES[case]
    hidden: dict[str, Any] = {"command": ("/usr/bin/python3", "-c", UNDUMPABLE)} if name == "dumpable" else {}
    with target(rootfs, tmp_path, **hidden) as neighbour:

        def examined(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
            # In the pod the target is pid 1. Its user may not write what the agent's may: doctor does not need to.
            box = agent_box(image, tmp_path, "doctor", "1", "--json", pod=neighbour.container.pid, **options)
            return {check["name"]: check for check in json.loads(ask(box, tmp_path))}

        before = examined(broken)
        assert before[name]["ok"] is not True, before
        assert before[name]["remedy"], before
        assert before.get("read its memory", {"ok": False})["ok"] is False, before
        after = examined(mended)
        assert after["read its memory"]["ok"] is True, after


@pytest.mark.containers
def test_a_pod_that_shares_no_pids_is_told_so(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """Alone in its pid namespace the agent names the line of the manifest that is missing."""
    checks = json.loads(ask(agent_box(image, tmp_path, "doctor", "--json"), tmp_path))
    (alone,) = (check for check in checks if check["name"] == "other processes")
    assert alone["ok"] is None
    assert "shareProcessNamespace: true" in alone["remedy"]
    with target(rootfs, tmp_path) as neighbour:
        box = agent_box(image, tmp_path, "doctor", "--json", pod=neighbour.container.pid)
        checks = json.loads(ask(box, tmp_path))
    assert next(check for check in checks if check["name"] == "other processes")["ok"] is True


@pytest.mark.containers
def test_a_faulty_configuration_does_not_end_the_sidecar(image: Path, rootfs: Path, tmp_path: Path) -> None:
    """It watches with the defaults, says what is wrong, and takes the configuration up once it is mended."""
    with target(rootfs, tmp_path) as neighbour:
        box = agent_box(image, tmp_path, "sidecar", "--json", pod=neighbour.container.pid)
        config = tmp_path / "config" / "sentinel.yaml"
        config.write_text("sampler: {interval: never}\n")
        with running(box, tmp_path) as container:
            agent = AgentProcess(container.process)
            agent.wait_for("target_appeared", seconds=60)
            refused = agent.wait_for("settings_refused", seconds=60)
            assert "sampler.interval" in refused["faults"]
            config.write_text(CONFIG)
            agent.wait_for("settings_reloaded", seconds=60)


@pytest.mark.containers
def test_what_the_image_does_not_hold(image: Path) -> None:
    """No pip, no compiler, a bill of materials, and only one program with a capability."""
    found = {
        path.name
        for folder in ("usr/bin", "usr/local/bin", "opt/sentinel/bin")
        for path in (image / folder).glob("*")
    }
    tools = re.compile(r"(pip|gcc|g\+\+|cc|c\+\+|ld|as|easy_install)[0-9.-]*")
    assert not {name for name in found if tools.fullmatch(name)}
    components = json.loads((image / "opt/sentinel/sbom.cdx.json").read_text())["components"]
    assert {"msgspec", "py-spy", "psutil"} <= {component["name"] for component in components}
    carrying = [
        path
        for path in (image / "opt").rglob("*")
        if path.is_file() and not path.is_symlink() and _carries(path)
    ]
    assert [path.name for path in carrying] == ["python"]


def _carries(path: Path) -> bool:
    return "security.capability" in os.listxattr(path)


@pytest.mark.containers
def test_what_is_said_of_the_image(built: Image) -> None:
    """Labels with the version it was built as, a health check, no user but its own, and who ends it how."""
    configuration = built.configuration
    labels = configuration["Labels"]
    assert labels["org.opencontainers.image.title"] == "Sentinel Agent"
    assert labels["org.opencontainers.image.version"] == "1.2.3"
    assert {"org.opencontainers.image.revision", "org.opencontainers.image.licenses"} <= set(labels)
    assert configuration["User"] == "65532:65532"
    assert configuration["Healthcheck"]["Test"] == ["CMD", "healthcheck"]
    assert configuration["StopSignal"] == "SIGTERM"
    assert (configuration["Entrypoint"], configuration["Cmd"]) == (["sentinel-agent"], ["sidecar"])


@pytest.mark.interop
def test_the_proxy_of_the_other_target(works: Workshop, tmp_path: Path) -> None:
    """Not root, on a root file system that cannot be written, with no capability: it serves, and its agent watches it."""
    proxy = works.build("proxy")
    assert proxy.configuration["Cmd"][0] == "proxy"
    components = json.loads((proxy.root / "opt/sentinel/sbom.cdx.json").read_text())["components"]
    assert {"httptools", "uvloop"} <= {component["name"] for component in components}
    port, api = free_port(), free_port()
    box = agent_box(
        proxy.root,
        tmp_path,
        "proxy",
        "--config",
        "/etc/sentinel-agent/proxy.yaml",
        "--listen",
        f"127.0.0.1:{api}",
    )
    (tmp_path / "config" / "sentinel.yaml").unlink()
    (tmp_path / "config" / "proxy.yaml").write_text(PROXY.format(port=port))
    environment = {name: value for name, value in box.environment.items() if name != "SENTINEL_CONFIG"}
    box = replace(box, capabilities=(), memory=128 * 1024**2, environment=environment)
    with running(box, tmp_path):
        until(lambda: listening(port), 60, "the proxy to listen")
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(f"http://127.0.0.1:{port}/")
        assert refused.value.code == 404, "no route: the answer is the proxy's own"
        refused.value.close()
        until(lambda: listening(api), 60, "its agent to listen")
        until(lambda: json.loads(get(f"http://127.0.0.1:{api}/api/v1/targets")), 60, "the agent to watch it")
