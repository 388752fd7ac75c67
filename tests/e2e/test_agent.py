"""The agent as its operator has it: a process of its own that is stopped, killed, restarted and given bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.support import (
    HERE,
    RULE,
    SENTINEL,
    SPIKE,
    AgentProcess,
    attached,
    listed,
    sentinel,
    started,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

# A spike is detected within a tick, and one capture takes so long that the test can act in the middle of it.
SLOW = RULE.format(capture="[stacks, {kind: profile, duration: 20s}]") + "sampler: {interval: 100ms}\n"
FAST = SPIKE + "sampler: {interval: 100ms}\n"


class Target:
    """A running `obedient.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.answer()

    def tell(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def obedient(*arguments: str, **environment: str) -> Iterator[Target]:
    """The target, with arguments that it ignores."""
    command = (sys.executable, str(HERE / "obedient.py"), *arguments)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(command, env={**os.environ, **environment}, **pipes) as process:
        yield Target(process)


def rules(data_dir: Path) -> list[dict[str, Any]]:
    """What `rules list --json` says."""
    found: list[dict[str, Any]] = json.loads(
        sentinel("rules", "list", "--json", "--data-dir", str(data_dir)).stdout
    )
    return found


def state_of(data_dir: Path, pid: int) -> str | None:
    """The state of the only rule on this process."""
    return next((view["state"] for view in rules(data_dir) if view["pid"] == pid), None)


def wait_state(data_dir: Path, pid: int, state: str) -> None:
    until(lambda: state_of(data_dir, pid) == state, 20, f"state {state} of {pid}")


def half_written(data_dir: Path) -> list[str]:
    """Names in the incidents folder that are no sealed incident."""
    return [path.name for path in (data_dir / "incidents").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_capture_ends_the_agent_in_five_seconds(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The incident under way is discarded whole, the agent ends in order, and no py-spy is left."""
    with obedient() as target, attached(str(target.pid), data_dir=tmp_path, config=SLOW) as agent:
        wait_state(tmp_path, target.pid, "inactive")
        target.tell("burn 3")
        agent.wait_for("incident_opened")
        assert half_written(tmp_path)
        os.kill(agent.process.pid, number)
        assert agent.process.wait(5) == 0
        assert half_written(tmp_path) == []
        assert listed(tmp_path) == []
        left = subprocess.run(["pgrep", "-g", str(agent.process.pid)], capture_output=True, check=False)
        assert left.stdout == b""


def test_killed_in_the_middle_of_a_capture_it_leaves_nothing_half(tmp_path: Path) -> None:
    """After kill -9 nothing half is listed, and the next start removes what was left."""
    with obedient() as target:
        with attached(str(target.pid), data_dir=tmp_path, config=SLOW) as agent:
            wait_state(tmp_path, target.pid, "inactive")
            target.tell("burn 3")
            agent.wait_for("incident_opened")
            os.killpg(agent.process.pid, signal.SIGKILL)
            agent.process.wait(5)
        assert half_written(tmp_path)
        assert listed(tmp_path) == []
        with attached(str(target.pid), data_dir=tmp_path, config=SLOW) as agent:
            agent.wait_for("target_appeared")
            assert half_written(tmp_path) == []


def by_rule(rule: str, event: dict[str, Any]) -> bool:
    """Whether an event is of an incident of this rule."""
    return bool(event["incident"]["rule"] == rule)


def test_a_target_that_exits_in_the_middle_of_a_capture_still_leaves_its_scene(tmp_path: Path) -> None:
    """What was captured before the end is sealed; what was not says why; the end is told with its status."""
    with obedient() as target, attached(str(target.pid), data_dir=tmp_path, config=SLOW) as agent:
        wait_state(tmp_path, target.pid, "inactive")
        target.tell("burn 5")
        agent.wait_for("incident_opened")
        until(lambda: list(tmp_path.glob("incidents/.tmp-*/stacks.json")), 10, "the first capture's end")
        target.process.kill()
        spike = partial(by_rule, "cpu-spike")
        sealed = agent.wait_for("incident_sealed", spike, seconds=10)["incident"]
        reports = {report["kind"]: report for report in sealed["captures"]}
        assert reports["stacks"]["status"] == "ok"
        assert reports["series"]["status"] == "ok"
        assert agent.wait_for("target_gone")["target"]["pid"] == target.pid
        assert agent.process.wait(10) == 0
        assert {row["rule"] for row in listed(tmp_path)} == {"cpu-spike", "target-died"}


def test_limits_survive_a_restart_of_the_agent(tmp_path: Path) -> None:
    """With `count: 1` the second spike makes no incident, although the agent that saw the first is gone."""
    once = FAST.replace("count: 10", "count: 1").replace("cooldown: 1m", "cooldown: 0s")
    with obedient() as target:
        with attached(str(target.pid), data_dir=tmp_path, config=once) as agent:
            wait_state(tmp_path, target.pid, "inactive")
            target.tell("burn 1")
            agent.wait_for("incident_sealed")
            target.answer()
        with attached(str(target.pid), data_dir=tmp_path, config=once) as agent:
            wait_state(tmp_path, target.pid, "cooling")
            target.tell("burn 1")
            target.answer()
            view = next(view for view in rules(tmp_path) if view["pid"] == target.pid)
            assert view["reason"] == "limit"
            assert "limit is used up: 1 in 1h" in view["explanation"]["now"]
        assert len(listed(tmp_path)) == 1


def test_settings_are_reloaded_by_a_symlink_swap_and_a_fault_keeps_the_old(tmp_path: Path) -> None:
    """As Kubernetes swaps `..data`: a valid change is in force, a faulty one is refused with its place."""
    for name, text in (
        ("one", FAST),
        ("two", FAST.replace("min: 20", "min: 30")),
        ("three", FAST.replace("min: 20", "mni: 30")),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sentinel.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("one")
    config = tmp_path / "mounted.yaml"
    config.symlink_to("..data/sentinel.yaml")

    def swap(name: str) -> None:
        (tmp_path / "..new").symlink_to(name)
        (tmp_path / "..new").rename(tmp_path / "..data")

    data = tmp_path / "data"
    with obedient() as target:
        arguments = (str(target.pid), "--config", str(config))
        with attached(*arguments, data_dir=data, config="rule_packs: []\n") as agent:
            agent.wait_for("target_appeared")
            wait_state(data, target.pid, "inactive")
            swap("two")
            assert agent.wait_for("settings_reloaded")["changes"] == ["rule cpu-spike changed"]
            swap("three")
            refused = agent.wait_for("settings_refused")["faults"]
            assert "mounted.yaml" in refused
            assert "rules[0].trigger" in refused
            assert "mni" in refused
            explained = sentinel("rules", "explain", "cpu-spike", "--data-dir", str(data)).stdout
            assert "30%" in explained


def test_secrets_of_the_target_are_nowhere_in_an_incident(tmp_path: Path) -> None:
    """A password in the environment, one on the command line and one in a URL are in no file of the incident."""
    secrets = ("hunter2-env", "hunter2-flag", "hunter2-url")
    arguments = ("--password", secrets[1], f"--upstream=http://user:{secrets[2]}@127.0.0.1/")
    with obedient(*arguments, DB_PASSWORD=secrets[0]) as target:
        done = sentinel("dump", str(target.pid), "--data-dir", str(tmp_path))
    (row,) = listed(tmp_path)
    assert row["rule"] == "manual"
    folder = tmp_path / "incidents" / row["id"]
    texts = [done.stdout, *(path.read_bytes().decode("latin-1") for path in folder.iterdir())]
    assert len(texts) > 5
    for secret in secrets:
        assert not any(secret in text for text in texts)
    process = json.loads((folder / "process.json").read_text())
    assert process["environment"]["DB_PASSWORD"] == "<redacted>"


def test_the_data_directory_may_vanish_while_the_agent_runs(tmp_path: Path) -> None:
    """The next incident is saved all the same, in a directory that is made again."""
    data = tmp_path / "data"
    with obedient() as target, attached(str(target.pid), data_dir=data, config=FAST) as agent:
        wait_state(data, target.pid, "inactive")
        shutil.rmtree(data)
        target.tell("burn 1")
        sealed = agent.wait_for("incident_sealed")["incident"]
        assert [row["id"] for row in listed(data)] == [sealed["id"]]


def test_run_passes_on_output_signals_and_status(tmp_path: Path) -> None:
    """Stdout is the command's alone, SIGTERM reaches it, and its status is ours; a fatal signal counts 128 more."""
    script = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); signal.pause()"
    command = (*SENTINEL, "run", "--data-dir", str(tmp_path), "--", sys.executable, "-c", script)
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(10) == 7
        assert process.stdout.read() == ""
    killed = sentinel("run", "--data-dir", str(tmp_path), "--", "sh", "-c", "kill -9 $$", check=None)
    assert killed.returncode == 128 + 9
    missing = sentinel("run", "--data-dir", str(tmp_path), "--", "no-such-command-anywhere", check=2)
    assert "No such file" in missing.stderr


def test_the_demo_saves_all_three_incidents(tmp_path: Path) -> None:
    """Without a terminal the tour ends by itself; each fault has its incident, the spike's names the function."""
    done = sentinel("demo", "--once", "--data-dir", str(tmp_path))
    assert {row["rule"] for row in listed(tmp_path)} == {"cpu-spike", "task-leak", "memory-growth"}
    assert "(route report): checksum_every_row" in done.stdout
    assert re.search(r"on the event loop for .*: GET /report\?seconds=3, route report", done.stdout)
    for route in ("subscribe", "cached"):
        assert f"route {route}: " in done.stdout
    assert "sentinel-agent incidents show" in done.stdout
    (spike,) = (row["id"] for row in listed(tmp_path) if row["rule"] == "cpu-spike")
    export = ("incidents", "export", spike, "--format", "collapsed", "-o", "-", "--data-dir", str(tmp_path))
    stacks = sentinel(*export, "--route", "report").stdout.splitlines()
    assert stacks
    assert all(";route report (" in stack for stack in stacks)
    assert any("checksum_every_row" in stack for stack in stacks)
    assert "routes in it: report" in sentinel(*export, "--route", "nowhere", check=3).stderr


def test_what_can_not_be_watched_is_refused_in_words(tmp_path: Path) -> None:
    """Each kind of process that is no target has its exit code and says what it is."""
    place = ("--data-dir", str(tmp_path))
    with started(("sleep", "60")) as other:
        refused = sentinel("attach", str(other.pid), *place, check=1)
        assert "is not Python" in refused.stderr
        zombie = subprocess.Popen(["true"])
        until(partial(is_zombie, zombie.pid), 5, "the zombie")
        refused = sentinel("attach", str(zombie.pid), *place, check=3)
        assert "zombie" in refused.stderr
        zombie.wait()
    assert "there is no process" in sentinel("attach", str(zombie.pid), *place, check=3).stderr
    assert "Nothing to watch" in sentinel("attach", *place, check=2).stderr
    assert "no regular expression" in sentinel("attach", "--match", "(", *place, check=2).stderr
    nobody = sentinel("attach", "--match", "no-such-process-anywhere", "--for", "300ms", *place, check=3)
    assert "no process matched" in nobody.stderr


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_target_of_another_user_needs_rights_that_the_message_names(tmp_path: Path) -> None:
    """As a user without rights the exit code is 4 and the remedy is there."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:-2]:
        parent.chmod(parent.stat().st_mode | 0o055) if parent.owner() == "root" and parent != Path(
            "/tmp"
        ) else None
    with obedient() as target:
        command = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
        done = subprocess.run(
            [*command, *SENTINEL, "attach", str(target.pid), "--data-dir", str(tmp_path / "d")],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 4, done.stderr
    assert "CAP_SYS_PTRACE" in done.stderr


def test_a_sidecar_goes_on_without_what_it_cannot_have(tmp_path: Path) -> None:
    """No token for an address that others reach, and a faulty configuration: both are told, and targets are watched."""
    config = tmp_path / "sentinel.yaml"
    config.write_text("store: {max_incidents: many}\n")
    command = (*SENTINEL, "sidecar", "--json", "--data-dir", str(tmp_path / "data"), "--config", str(config))
    environment = {**os.environ, "SENTINEL_TARGET_ENVIRONMENT": f"OF_TEST={tmp_path.name}"}
    with (
        obedient(OF_TEST=tmp_path.name) as target,
        started((*command, "--listen", "0.0.0.0:0"), stdout=subprocess.PIPE, env=environment) as process,
    ):
        agent = AgentProcess(process)
        assert "token" in agent.wait_for("trouble")["what"]
        assert agent.wait_for("target_appeared")["target"]["pid"] == target.pid
        assert "store.max_incidents" in agent.wait_for("settings_refused")["faults"]
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
