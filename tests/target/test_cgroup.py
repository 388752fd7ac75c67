"""Limits of cgroup v1, v2 and both: trees of files in every layout that containers show, and hostile content."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_agent.target.cgroup import (
    Host,
    Limits,
    LimitsView,
    locate,
    parse_bytes,
    parse_cpu_max,
    parse_membership,
    parse_mountinfo,
    read_counters,
    read_limits,
    relative,
)
from sentinel_agent.target.procfs import ProcDir
from tests.target.fakeproc import FakeProc

if TYPE_CHECKING:
    from pathlib import Path

HOST = Host(cores=8, memory=16 * 1024**3)
GIB = 1024**3
V1_UNLIMITED = "9223372036854771712\n"


class FakeCgroups:
    """A fake machine with one process, 7, and mounts that the test lays out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.process = FakeProc(root).add(7)
        (root / "proc/self").mkdir()
        (root / "proc/self/mountinfo").touch()
        self.device = f"{os.major(root.stat().st_dev)}:{os.minor(root.stat().st_dev)}"

    def mount(self, point: str, kind: str, options: str = "rw", root: str = "/", whose: str = "self") -> None:
        line = f"30 1 {self.device} {root} {point} rw,relatime shared:1 - {kind} {kind} {options}\n"
        with (self.root / f"proc/{whose}/mountinfo").open("a") as file:
            file.write(line)

    def member(self, *lines: str) -> None:
        (self.process / "cgroup").write_text("\n".join(lines) + "\n")

    def write(self, folder: str, **files: str) -> None:
        where = self.root / folder.strip("/")
        where.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (where / name.replace("__", ".")).write_text(content)

    def limits(self, cpu_cores: float = 0.0, memory: int = 0) -> Limits:
        with ProcDir(7, self.root) as proc:
            return read_limits(proc, HOST, cpu_cores=cpu_cores, memory=memory)


@pytest.fixture
def machine(tmp_path: Path) -> FakeCgroups:
    return FakeCgroups(tmp_path)


def test_v2_the_lowest_limit_of_all_levels_counts(machine: FakeCgroups) -> None:
    """A pod's limit holds for its container as well; the source says how far above it was found."""
    machine.mount("/sys/fs/cgroup", "cgroup2")
    machine.member("0::/pod/box")
    machine.write("/sys/fs/cgroup/pod/box", cpu__max="200000 100000\n", memory__max="max\n")
    machine.write("/sys/fs/cgroup/pod", cpu__max="50000 100000\n", memory__max=f"{2 * GIB}\n")
    machine.write("/sys/fs/cgroup")
    limits = machine.limits()
    assert (limits.cpu_cores, limits.memory) == (0.5, 2 * GIB)
    assert limits.cpu_source == "cgroup v2: cpu.max of 1 level above /pod/box"
    top = machine.root / "sys/fs/cgroup"
    assert limits.cpu_levels == (f"{top}/pod/box", f"{top}/pod")
    assert limits.memory_levels == (f"{top}/pod",)


def test_v2_in_a_container_with_its_own_namespace(machine: FakeCgroups) -> None:
    """The process is at the root of what it sees: that is where its limit is."""
    machine.mount("/sys/fs/cgroup", "cgroup2")
    machine.member("0::/")
    machine.write("/sys/fs/cgroup", cpu__max="150000 100000\n", memory__max=f"{GIB}\n")
    limits = machine.limits()
    assert (limits.cpu_cores, limits.memory) == (1.5, GIB)
    assert limits.memory_source == "cgroup v2: memory.max of /"


def test_v1_with_separate_mounts(machine: FakeCgroups) -> None:
    """Quota over period; -1 at one level does not hide the limit above it."""
    machine.mount("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    machine.mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory")
    machine.member("4:memory:/a/b", "3:cpu,cpuacct:/a/b", "1:name=systemd:/x")
    cpu, memory = "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"
    machine.write(f"{cpu}/a/b", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    machine.write(f"{cpu}/a", cpu__cfs_quota_us="250000\n", cpu__cfs_period_us="100000\n")
    machine.write(f"{memory}/a/b", memory__limit_in_bytes=f"{GIB}\n")
    machine.write(f"{memory}/a", memory__limit_in_bytes=V1_UNLIMITED)
    limits = machine.limits()
    assert (limits.cpu_cores, limits.memory) == (2.5, GIB)
    assert limits.cpu_source == "cgroup v1: cpu.cfs_quota_us of 1 level above /a/b"
    assert limits.memory_source == "cgroup v1: memory.limit_in_bytes of /a/b"


def test_v1_a_limit_above_what_can_be_seen(machine: FakeCgroups) -> None:
    """The container's mount hides the pod's folder; the kernel's hierarchical limit tells."""
    machine.mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory", root="/pod/box")
    machine.member("4:memory:/pod/box")
    machine.write(
        "/sys/fs/cgroup/memory",
        memory__limit_in_bytes=V1_UNLIMITED,
        memory__stat=f"cache 1\nhierarchical_memory_limit {3 * GIB}\n",
    )
    assert machine.limits().memory == 3 * GIB


def test_hybrid_takes_each_controller_where_it_is(machine: FakeCgroups) -> None:
    """Memory from v1, CPU from v2 beside it."""
    machine.mount("/sys/fs/cgroup/unified", "cgroup2")
    machine.mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory")
    machine.member("4:memory:/m", "0::/u")
    machine.write("/sys/fs/cgroup/unified/u", cpu__max="300000 100000\n", memory__max="4096\n")
    machine.write("/sys/fs/cgroup/memory/m", memory__limit_in_bytes=f"{GIB}\n")
    limits = machine.limits()
    assert (limits.cpu_cores, limits.memory) == (3.0, GIB)


def test_another_container_is_seen_through_its_own_root(machine: FakeCgroups) -> None:
    """The target's cgroup is outside our mount: its own mount is read, through /proc/PID/root."""
    machine.mount("/sys/fs/cgroup", "cgroup2", root="/ours")
    machine.mount("/sys/fs/cgroup", "cgroup2", root="/../theirs", whose="7")
    machine.member("0::/../theirs")
    machine.write("/sys/fs/cgroup", cpu__max="700000 100000\n")
    machine.write("/proc/7/root/sys/fs/cgroup", cpu__max="100000 100000\n")
    assert machine.limits().cpu_cores == 1.0


@pytest.mark.parametrize("trick", ["symlink", "fifo", "other device"])
def test_files_that_a_target_planted_are_not_read(machine: FakeCgroups, trick: str) -> None:
    """Through the target's root a file may be anything; what is not the kernel's is as good as missing."""
    if trick == "other device":
        machine.device = "254:9999"
    machine.mount("/sys/fs/cgroup", "cgroup2", whose="7")
    machine.member("0::/")
    folder = "/proc/7/root/sys/fs/cgroup"
    machine.write(folder, real="100000 100000\n")
    planted = machine.root / folder.strip("/") / "cpu.max"
    if trick == "symlink":
        planted.symlink_to("real")
    elif trick == "fifo":
        os.mkfifo(planted)
    else:
        planted.write_text("100000 100000\n")
    assert machine.limits().cpu_cores == HOST.cores


@pytest.mark.parametrize(
    ("cpu", "memory"),
    [
        ("max 100000", "max"),
        ("", ""),
        ("garbage", "-1"),
        ("0 0", "0"),
        ("1 0", V1_UNLIMITED),
        ("-5 100000", "12GiB"),
        ("9999999999 1", str(2**59)),
        ("\0\xff 1", "1" * 5000),
    ],
)
def test_no_limit_and_nonsense_fall_back_to_the_host(machine: FakeCgroups, cpu: str, memory: str) -> None:
    """`max`, -1, garbage and limits beyond the machine mean the machine."""
    machine.mount("/sys/fs/cgroup", "cgroup2")
    machine.member("0::/")
    machine.write("/sys/fs/cgroup", cpu__max=cpu, memory__max=memory)
    limits = machine.limits()
    assert (limits.cpu_cores, limits.memory) == (HOST.cores, HOST.memory)
    assert limits.cpu_source == "host: 8 cores it may run on"
    assert limits.memory_source == "host: 16.0 GiB of memory"


def test_missing_files_and_mounts_fall_back_to_the_host(machine: FakeCgroups) -> None:
    """No cgroup file system, no folder, no files: the machine, and no controller to count throttling of."""
    machine.member("0::/a")
    assert (machine.limits().cpu_cores, machine.limits().cpu) == (HOST.cores, None)
    machine.mount("/sys/fs/cgroup", "cgroup2")
    assert machine.limits().cpu is None
    machine.write("/sys/fs/cgroup/a")
    assert (machine.limits().cpu_cores, machine.limits().cpu_levels) == (HOST.cores, ())
    machine.member("garbage", "0:", "", "::::")
    assert machine.limits().memory == HOST.memory


def test_the_operators_word_wins(machine: FakeCgroups) -> None:
    """Settings replace what is found, and say so."""
    machine.mount("/sys/fs/cgroup", "cgroup2")
    machine.member("0::/")
    machine.write("/sys/fs/cgroup", cpu__max="100000 100000", memory__max="4096")
    limits = machine.limits(cpu_cores=3.5, memory=GIB)
    assert (limits.cpu_cores, limits.memory) == (3.5, GIB)
    assert (limits.cpu_source, limits.memory_source) == (
        "settings: limits.cpu_cores",
        "settings: limits.memory",
    )


def test_limits_are_read_again_after_a_while(machine: FakeCgroups) -> None:
    """A container resized in place: the old figure holds for 30 s at most."""
    machine.mount("/sys/fs/cgroup", "cgroup2")
    machine.member("0::/")
    machine.write("/sys/fs/cgroup", cpu__max="100000 100000")
    with ProcDir(7, machine.root) as proc:
        view = LimitsView(proc, host=HOST)
        assert view.at(1000.0).cpu_cores == 1.0
        machine.write("/sys/fs/cgroup", cpu__max="200000 100000")
        assert view.at(1029.9).cpu_cores == 1.0
        assert view.at(1030.0).cpu_cores == 2.0


def test_counters_of_both_forms(machine: FakeCgroups) -> None:
    """`key value` lines and a single number; other lines are left out."""
    machine.mount("/sys/fs/cgroup", "cgroup2")
    machine.member("0::/")
    machine.write("/sys/fs/cgroup", lines="a 1\nb x\n\nc 3 4\nd 5\n", number="17\n")
    with ProcDir(7, machine.root) as proc:
        controller = locate(proc, "cpu")
    assert controller
    assert read_counters(controller, controller.levels[0], "lines") == {"a": 1, "d": 5}
    assert read_counters(controller, controller.levels[0], "number") == {"": 17}


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/", "/", ()),
        ("/a/b", "/", ("a", "b")),
        ("/a/b", "/a", ("b",)),
        ("/ab", "/a", None),
        ("/a", "/a/b", None),
        ("/../x", "/", None),
        ("/../x/y", "/../x", ("y",)),
        ("/a/../../etc", "/a", None),
    ],
)
def test_paths_below_a_mount(path: str, root: str, below: tuple[str, ...] | None) -> None:
    """A path is below a mount if its folders begin with the mount's, and never climbs out."""
    assert relative(path, root) == below


_LINES = st.one_of(
    st.binary(max_size=200),
    st.from_regex(rb"\d+ \d+ \d+:\d+ /[\\0-9a-z]* /[a-z]* rw - cgroup2? x [a-z,]*", fullmatch=True),
    st.from_regex(rb"\d+:[a-z,=]*:/[a-z/.]*", fullmatch=True),
)


@given(st.lists(_LINES, max_size=8).map(b"\n".join), st.binary(max_size=40))
def test_parsers_never_raise(document: bytes, value: bytes) -> None:
    """Whatever the files hold: mounts, paths and limits, or nothing; every limit is a positive number."""
    for mount in parse_mountinfo(document):
        assert mount.version in {1, 2}
    for path in parse_membership(document).values():
        assert path.startswith("/")
        relative(path, path)
    assert (parse_cpu_max(value) or 1) > 0
    assert 0 < (parse_bytes(value) or 1) < 2**60


def test_mount_points_with_spaces() -> None:
    """Octal escapes are undone."""
    (mount,) = parse_mountinfo(rb"1 2 0:30 / /mnt/a\040b\134c rw - cgroup2 none rw" + b"\n")
    assert (mount.point, mount.device) == ("/mnt/a b\\c", os.makedev(0, 30))
