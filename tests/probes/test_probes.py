"""Each probe against what the process itself, psutil or the kernel says."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from sentinel_agent.core.metrics import METRICS
from sentinel_agent.probes.base import Moment, Probe, Rates, Subject
from sentinel_agent.probes.cpu import CpuProbe, process_clock
from sentinel_agent.probes.fds import FdsProbe
from sentinel_agent.probes.live import LiveReader
from sentinel_agent.probes.memory import MemoryProbe
from sentinel_agent.probes.oom import OomCount
from sentinel_agent.probes.registry import BUILT_IN, build_probes, load_registry
from sentinel_agent.probes.storage import StorageProbe, WaitProbe
from sentinel_agent.probes.switches import SwitchesProbe
from sentinel_agent.probes.threads import ThreadsProbe
from sentinel_agent.tap.probe import ProxyProbe
from sentinel_agent.target.cgroup import Host, Limits, LimitsView
from sentinel_agent.target.procfs import PAGE_SIZE, ProcDir
from tests.probes.subjects import target_of
from tests.target.fakeproc import FakeProc, line, running, tell, wait_ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentinel_agent.core.model import Reading

GIB = 1024**3


def moment(seconds: float | None = None) -> Moment:
    """A moment that the test chooses, or this one."""
    monotonic = time.clock_gettime(time.CLOCK_MONOTONIC) if seconds is None else seconds
    return Moment(wall=1_700_000_000.0, monotonic=monotonic)


def subject_of(proc: ProcDir) -> Subject:
    limits = Limits(cpu_cores=2.0, cpu_source="", memory=GIB, memory_source="")
    target = target_of(proc.pid, proc.root)
    return Subject(
        target, proc, LiveReader(target.id, proc.root), lambda _: limits, OomCount(lambda _: limits)
    )


def values(probe: Probe, now: Moment) -> dict[str, float]:
    readings = probe.read(now)
    assert all(reading.error is None for reading in readings), readings
    return {reading.metric: reading.value for reading in readings if reading.value is not None}


def error_of(readings: list[Reading]) -> str:
    (reason,) = {reading.error for reading in readings}
    assert reason
    return reason


BURN = (
    "import time\n"
    "def burn(seconds):\n"
    "    end = time.process_time() + seconds\n"
    "    while time.process_time() < end: pass\n"
    "burn(float(input() or 0)); print(time.process_time(), flush=True)\n"
    "burn(float(input())); print(time.process_time(), flush=True); input()\n"
)


@pytest.mark.parametrize("exact", [True, False], ids=["kernel clock", "10 ms ticks"])
def test_cpu_is_what_the_process_says_it_used(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second burnt, as the child measured it itself; over a stated second that is 50%, of two cores 25%."""
    if not exact:
        monkeypatch.setattr("sentinel_agent.probes.cpu.process_clock", lambda pid: -1)
    with running(BURN) as child, ProcDir(child.pid) as proc:
        tell(child, "0")
        begin = float(line(child))
        probe = CpuProbe(subject_of(proc))
        assert probe.exact is exact
        assert values(probe, moment(100.0)) == {}
        tell(child, "0.5")
        used = float(line(child)) - begin
        cpu = values(probe, moment(101.0))
    assert cpu["cpu"] == pytest.approx(used * 100, abs=0.5 if exact else 2.0)
    assert cpu["cpu_limit"] == pytest.approx(cpu["cpu"] / 2)


@pytest.mark.e2e
def test_the_burner_that_is_busy_three_of_five_seconds_reads_as_sixty_percent() -> None:
    """Every period reads as what the burner itself measured; one that it kept to 3 of 5 s reads as 60 +- 3%.

    On a starved machine 3 s of CPU time may not fit into 5 s. The burner knows, and such a period is no 3-of-5
    period; it is still compared with the burner's own figure. Four periods without a kept one are a failure.
    """
    code = (
        "import time\n"
        "while True:\n"
        "    input(); begin, used = time.monotonic(), time.process_time()\n"
        "    while time.process_time() < used + 3: pass\n"
        "    time.sleep(max(0, begin + 5 - time.monotonic()))\n"
        "    print(time.process_time() - used, time.monotonic() - begin, flush=True)\n"
    )
    kept = []
    with running(code) as child, ProcDir(child.pid) as proc:
        probe = CpuProbe(subject_of(proc))
        for _ in range(4):
            values(probe, moment())
            tell(child)
            used, elapsed = map(float, line(child).split())
            read = values(probe, moment())["cpu"]
            assert read == pytest.approx(100 * used / elapsed, abs=1)
            if elapsed < 5.1:
                kept.append(read)
                break
    assert kept, "the machine was too busy for 3 s of CPU time in 5 s, four times over"
    assert kept[0] == pytest.approx(60, abs=3)


def test_the_kernels_clock_of_another_process_is_clock_getcpuclockid() -> None:
    """The number we form for ourselves reads as the process clock that Python asks the C library for."""
    clock = ctypes.c_int()
    for pid in (os.getpid(), 1, 7):
        if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)) == 0:
            assert process_clock(pid) == clock.value
    ours = time.clock_gettime_ns(process_clock(os.getpid()))
    assert 0 <= time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID) - ours < 10_000_000


def test_cpu_of_an_ended_process() -> None:
    """A zombie's last CPU time is still read; once it is reaped the reading is an error, never another's time."""
    with running(BURN) as child, ProcDir(child.pid) as proc:
        probe = CpuProbe(subject_of(proc))
        values(probe, moment(0.0))
        tell(child, "0.2")
        line(child)
        child.kill()
        wait_ended(child.pid)
        assert values(probe, moment(1.0))["cpu"] >= 20
        child.wait()
        assert error_of(probe.read(moment(2.0))) == "the process has ended"


def test_a_reused_pid_is_an_error_in_every_probe(tmp_path: Path) -> None:
    """The number came back with another process behind it: all that is read is that the target has ended."""
    fake = FakeProc(tmp_path)
    fake.add(7, start=100, ticks=50)
    with build_probes(target_of(7, tmp_path), load_registry([]), root=tmp_path) as probes:
        for probe in probes.probes:
            probe.read(moment(1.0))
        fake.remove(7)
        fake.add(7, start=200, ticks=9000)
        readings = [reading for probe in probes.probes for reading in probe.read(moment(2.0))]
    assert {reading.metric for reading in readings} == {m for p in probes.probes for m in p.metrics}
    assert {reading.error for reading in readings if reading.metric != "io_wait"} == {"the process has ended"}


def test_memory_is_what_the_process_reads_of_itself() -> None:
    """Resident pages of the child's own statm, and a hundred MiB more when it takes a hundred more."""
    code = (
        "kept = []\n"
        "while True:\n"
        "    print(open('/proc/self/statm').read().split()[1], flush=True)\n"
        "    kept.append(b'x' * int(input()))\n"
    )
    with running(code) as child, ProcDir(child.pid) as proc:
        probe = MemoryProbe(subject_of(proc))
        own = int(line(child)) * PAGE_SIZE
        before = values(probe, moment())
        assert before["rss"] == pytest.approx(own, abs=64 * PAGE_SIZE)
        assert before["rss"] == pytest.approx(psutil.Process(child.pid).memory_info().rss, abs=64 * PAGE_SIZE)
        tell(child, str(100 * 1024**2))
        line(child)
        after = values(probe, moment())
        assert after["rss"] - before["rss"] == pytest.approx(100 * 1024**2, rel=0.02)
        assert after["rss_limit"] == pytest.approx(100 * after["rss"] / GIB)


def test_threads_and_descriptors_are_what_the_process_has() -> None:
    """Seven threads and nine files more are seven and nine more."""
    code = (
        "import threading\n"
        "print('start', flush=True); input(); stop = threading.Event(); files = [open('/dev/null') for _ in range(9)]\n"
        "threads = [threading.Thread(target=stop.wait) for _ in range(7)]\n"
        "[t.start() for t in threads]; print('up', flush=True); input(); stop.set()\n"
    )
    with running(code) as child, ProcDir(child.pid) as proc:
        threads, fds = ThreadsProbe(subject_of(proc)), FdsProbe(subject_of(proc))
        line(child)
        assert values(threads, moment()) == {"threads": 1}
        before = values(fds, moment())["fds"]
        tell(child)
        line(child)
        assert values(threads, moment()) == {"threads": 8}
        after = values(fds, moment())["fds"]
        assert after == before + 9 == psutil.Process(child.pid).num_fds()
        tell(child)
        wait_ended(child.pid)
        for probe in (threads, fds, MemoryProbe(subject_of(proc))):
            assert error_of(list(probe.read(moment()))) == "the process has ended"


def test_descriptors_are_listed_where_the_size_does_not_tell(tmp_path: Path) -> None:
    """A kernel whose directory size is no count (here a plain folder): the entries are counted at each tick."""
    folder = FakeProc(tmp_path).add(7) / "fd"
    folder.mkdir()
    with ProcDir(7, tmp_path) as proc:
        probe = FdsProbe(subject_of(proc))
        for count in range(4):
            (folder / str(count)).touch()
            assert values(probe, moment()) == {"fds": count + 1}


def test_switches_of_all_threads_are_counted() -> None:
    """Two hundred waits in a second thread are two hundred voluntary switches; the main thread makes none."""
    code = (
        "import threading, time\n"
        "go, done = threading.Event(), threading.Event()\n"
        "def wait():\n"
        "    go.wait()\n"
        "    for _ in range(200): time.sleep(0.0001)\n"
        "    done.set(); input()\n"
        "thread = threading.Thread(target=wait); thread.start()\n"
        "print('up', flush=True); input(); go.set(); done.wait(); print('done', flush=True); thread.join()\n"
    )
    with running(code) as child, ProcDir(child.pid) as proc:
        probe = SwitchesProbe(subject_of(proc))
        line(child)
        assert values(probe, moment(0.0)) == {}
        tell(child)
        line(child)
        main_only = psutil.Process(child.pid).num_ctx_switches().voluntary
        rates = values(probe, moment(2.0))
        tell(child)
    assert main_only < 100
    assert 100 <= rates["ctx_voluntary"] <= 115
    assert 0 <= rates["ctx_involuntary"] < 50


def test_a_thread_that_ends_takes_nothing_back(tmp_path: Path) -> None:
    """Rates stay at or over zero when threads come and go; a new one counts from its beginning."""
    fake = FakeProc(tmp_path)
    folder = fake.add(7)
    status = (folder / "status").read_text()

    def thread(number: int, switches: int) -> None:
        where = folder / "task" / str(number)
        where.mkdir(exist_ok=True)
        (where / "status").write_text(
            status.replace("voluntary_ctxt_switches:\t1", f"voluntary_ctxt_switches:\t{switches}")
        )

    thread(7, 100)
    thread(8, 5000)
    with ProcDir(7, tmp_path) as proc:
        probe = SwitchesProbe(subject_of(proc))
        assert values(probe, moment(10.0)) == {}
        thread(7, 110)
        (folder / "task/8/status").unlink()
        thread(9, 30)
        assert values(probe, moment(12.0))["ctx_voluntary"] == 20.0


def test_bytes_written_to_storage_are_what_psutil_counts() -> None:
    """A megabyte written and synced; the share that reached the device is psutil's figure for the process."""
    code = (
        "import os, sys\n"
        "input(); f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY); os.write(f, b'x' * 2**20); os.fsync(f)\n"
        "print('done', flush=True); input()\n"
    )
    spill = Path(__file__).with_name(f"spill-{os.getpid()}")
    try:
        with running(code, str(spill)) as child, ProcDir(child.pid) as proc:
            probe, told = StorageProbe(subject_of(proc)), psutil.Process(child.pid)
            before = told.io_counters()
            assert values(probe, moment(0.0)) == {}
            tell(child)
            line(child)
            rates, after = values(probe, moment(2.0)), told.io_counters()
    finally:
        spill.unlink(missing_ok=True)
    assert rates["io_write"] * 2 == after.write_bytes - before.write_bytes
    assert rates["io_read"] * 2 == after.read_bytes - before.read_bytes


def _delay_accounting(root: Path, value: str) -> None:
    switch = root / "proc/sys/kernel/task_delayacct"
    switch.parent.mkdir(parents=True, exist_ok=True)
    switch.write_text(value)


def test_io_wait_is_an_error_where_the_kernel_does_not_count(tmp_path: Path) -> None:
    """With delay accounting off the field is always 0; that is no measurement."""
    FakeProc(tmp_path).add(7)
    _delay_accounting(tmp_path, "0\n")
    with ProcDir(7, tmp_path) as proc:
        probe = WaitProbe(subject_of(proc))
        assert "kernel.task_delayacct=1" in error_of(probe.read(moment(0.0)))


def test_io_wait_in_percent_of_a_core(tmp_path: Path) -> None:
    """Field 42 in ticks of 10 ms: 50 ticks in a second are 50%."""
    folder = FakeProc(tmp_path).add(7)
    _delay_accounting(tmp_path, "1\n")

    def waited(ticks: int) -> None:
        fields = [b"7 (x) S 1", *[b"0"] * 48]
        fields[42 - 4] = b"%d" % ticks
        (folder / "task/7/stat").write_bytes(b" ".join(fields))

    with ProcDir(7, tmp_path) as proc:
        probe = WaitProbe(subject_of(proc))
        waited(10)
        assert values(probe, moment(1.0)) == {}
        waited(60)
        expected = 50 * 100 / os.sysconf("SC_CLK_TCK")
        assert values(probe, moment(2.0)) == {"io_wait": expected}


@pytest.fixture
def limited(tmp_path: Path) -> tuple[Path, Callable[[str, str], None]]:
    """A process 7 in a v2 cgroup with a CPU quota and a memory limit, and a way to write its files."""
    folder = FakeProc(tmp_path).add(7)
    device = f"{os.major(tmp_path.stat().st_dev)}:{os.minor(tmp_path.stat().st_dev)}"
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/mountinfo").write_text(f"1 1 {device} / /cg rw - cgroup2 none rw\n")
    (folder / "cgroup").write_text("0::/pod/box\n")
    box = tmp_path / "cg/pod/box"
    box.mkdir(parents=True)

    def write(name: str, content: str) -> None:
        (box / name).write_text(content)

    write("cpu.max", "100000 100000")
    write("memory.max", "1000000")
    write("cpu.stat", "nr_periods 100\nnr_throttled 10\n")
    write("memory.events", "max 5\noom_kill 1\n")
    return tmp_path, write


def test_throttling_is_a_share_of_the_periods_since_the_last_tick(
    limited: tuple[Path, Callable[[str, str], None]],
) -> None:
    """5 of 20 periods are 25%; an idle second has no period and no throttling."""
    root, write = limited
    with build_probes(target_of(7, root), load_registry([]), root=root) as probes:
        (probe,) = (probe for probe in probes.probes if probe.metrics == ("throttled",))
        assert values(probe, moment(1.0)) == {}
        write("cpu.stat", "nr_periods 120\nnr_throttled 15\n")
        assert values(probe, moment(2.0)) == {"throttled": 25.0}
        assert values(probe, moment(3.0)) == {"throttled": 0.0}
        write("cpu.stat", "nr_periods 3\nnr_throttled 1\n")  # the cgroup was made anew
        assert values(probe, moment(4.0)) == {"throttled": 0.0}


def test_memory_events_and_kills_are_counted_from_tick_to_tick(
    limited: tuple[Path, Callable[[str, str], None]],
) -> None:
    """What was there at the first tick does not count; what comes is counted once."""
    root, write = limited
    with build_probes(target_of(7, root), load_registry([]), root=root) as probes:
        wanted = [p for p in probes.probes if {"memory_events", "oom_kills"} & set(p.metrics)]
        assert [values(probe, moment(1.0)) for probe in wanted] == [{}, {}]
        write("memory.events", "max 8\noom_kill 2\n")
        assert [values(probe, moment(2.0)) for probe in wanted] == [{"memory_events": 3}, {"oom_kills": 1}]
        assert [values(probe, moment(3.0)) for probe in wanted] == [{"memory_events": 0}, {"oom_kills": 0}]


def test_without_a_cgroup_the_reading_says_so(tmp_path: Path) -> None:
    """No controller that can be seen is an error in words."""
    (FakeProc(tmp_path).add(7) / "cgroup").write_text("")
    with build_probes(target_of(7, tmp_path), load_registry([]), root=tmp_path) as probes:
        (probe,) = (probe for probe in probes.probes if probe.metrics == ("throttled",))
        assert "no CPU controller" in error_of(list(probe.read(moment())))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 9000, b"1 2", b"-", b"9" * 5000])
def test_garbage_in_any_file_is_an_error_reading(tmp_path: Path, content: bytes) -> None:
    """Whatever /proc says, no probe raises and no reading is infinite."""
    folder = FakeProc(tmp_path).add(7)
    target = target_of(7, tmp_path)
    with build_probes(target, load_registry([]), root=tmp_path) as probes:
        for name in ("stat", "statm", "io", "cgroup", "task/7/stat", "task/7/status"):
            (folder / name).write_bytes(content)
        for tick in (1.0, 2.0):
            for probe in probes.probes:
                for reading in probe.read(moment(tick)):
                    assert reading.error or reading.value is not None


def test_rates_need_two_moments_and_never_go_below_zero() -> None:
    """Nothing at first, nothing when no time has passed, nothing for a counter that was set back."""
    rates = Rates()
    assert rates.per_second(moment(1.0), {"a": 10, "b": 10}) == {}
    assert rates.per_second(moment(1.0), {"a": 20, "b": 10}) == {}
    assert rates.per_second(moment(3.0), {"a": 40, "b": 5}) == {"a": 10.0}
    assert rates.per_second(moment(4.0), {"a": 41, "b": 6}) == {"a": 1.0, "b": 1.0}


def test_the_catalogue_and_the_probes_know_the_same_metrics() -> None:
    """Every metric has exactly one probe, and every probe's metric is in the catalogue; the proxy's probe needs its tap."""
    with build_probes(target_of(os.getpid()), load_registry([])) as probes:
        published = [metric for probe in probes.probes for metric in probe.metrics]
    assert sorted([*published, *ProxyProbe.metrics]) == sorted(METRICS)
    assert len(probes.probes) == len(BUILT_IN)


def test_all_probes_of_this_process_agree_with_its_own_account() -> None:
    """One tick over everything: no error but those this machine is known for; CPU within what getrusage says."""
    with build_probes(target_of(os.getpid()), load_registry([])) as probes:
        probes.subject.reader.open()
        for probe in probes.probes:
            probe.read(moment(0.0))
        begin = resource.getrusage(resource.RUSAGE_SELF)
        first = {r.metric: r for probe in probes.probes for r in probe.read(moment(1.0))}
        sum(range(3_000_000))
        end = resource.getrusage(resource.RUSAGE_SELF)
        second = {r.metric: r for probe in probes.probes for r in probe.read(moment(2.0))}
    used = end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
    assert first["cpu"].value is not None
    assert second["cpu"].value == pytest.approx(used * 100, abs=1.5)
    assert {metric for metric, reading in second.items() if reading.error} <= {
        "io_wait",
        "loop_stall",  # the recorder takes no looks here
        "gc_pause",
        "gc_share",
    }


def test_limits_view_gives_the_host_of_a_real_process() -> None:
    """Without cgroup limits the cores are those the process may run on."""
    with ProcDir(os.getpid()) as proc:
        limits = LimitsView(proc).at(0.0)
        assert 0 < limits.cpu_cores <= len(os.sched_getaffinity(0))
        assert 0 < limits.memory <= psutil.virtual_memory().total
        given = LimitsView(proc, 1.5, 1000, host=Host(4, GIB)).at(0.0)
    assert (given.cpu_cores, given.memory) == (1.5, 1000)
