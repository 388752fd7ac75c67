"""The wheel as users get it: built, installed into an environment of its own, and its main job run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent


def run(*command: str, cwd: Path, seconds: float = 400) -> str:
    """Standard output of a command that must succeed, with nothing of the checkout on Python's path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT), cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_three_packages_of_ours_and_nothing_else(wheel: Path) -> None:
    """No generic name reaches site-packages; rules, types and the demo's files are in it, tests are not."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"sentinel_agent", "sentinel_exporters", "sentinel_rules"}
    for needed in (
        "sentinel_agent/py.typed",
        "sentinel_agent/demo/rules.yaml",
        "sentinel_rules/default.yaml",
    ):
        assert needed in names
    assert [name for name in names if "tests" in name.split("/")] == []


def test_the_main_job_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """In a clean environment the tour saves its three incidents, and the default pack is found."""
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    binaries = tmp_path / "venv" / "bin"
    run(str(binaries / "python"), "-m", "pip", "install", "-q", f"{wheel}[all]", cwd=tmp_path)
    program, data = str(binaries / "sentinel-agent"), str(tmp_path / "data")
    where = run(
        str(binaries / "python"), "-c", "import sentinel_agent; print(sentinel_agent.__file__)", cwd=tmp_path
    )
    assert where.startswith(str(tmp_path))
    said = run(program, "demo", "--once", "--data-dir", data, cwd=tmp_path)
    assert "(route report): checksum_every_row" in said
    rows = json.loads(run(program, "incidents", "list", "--json", "--data-dir", data, cwd=tmp_path))
    assert {row["rule"] for row in rows} == {"cpu-spike", "task-leak", "memory-growth"}
    rules = json.loads(run(program, "rules", "list", "--json", "--data-dir", data, cwd=tmp_path))
    assert "rss-growth" in {view["rule"] for view in rules}


def test_a_small_install_works_without_the_extras(wheel: Path, tmp_path: Path) -> None:
    """With the base dependencies alone the command line answers, and what needs an extra names it."""
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    binaries = tmp_path / "venv" / "bin"
    run(str(binaries / "python"), "-m", "pip", "install", "-q", str(wheel), cwd=tmp_path)
    program = str(binaries / "sentinel-agent")
    assert run(program, "--version", cwd=tmp_path).startswith("sentinel-agent")
    checks = json.loads(run(program, "doctor", "--json", "--data-dir", str(tmp_path / "data"), cwd=tmp_path))
    assert any("sentinel-agent[cel]" in check["remedy"] for check in checks)
    refused = subprocess.run([program, "demo"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "sentinel-agent[proxy]" in refused.stderr
