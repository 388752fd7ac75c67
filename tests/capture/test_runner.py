"""The runner keeps captures in order and in bounds, and every one of them ends in a report."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from sentinel_agent.capture.base import CapturedFile, CapturePlan, CaptureResult
from sentinel_agent.capture.registry import LoadedCaptures, load_captures
from sentinel_agent.capture.runner import Captured, CaptureRunner
from sentinel_agent.capture.series import SeriesCapture
from sentinel_agent.capture.stacks import StacksCapture
from sentinel_agent.config.settings import CaptureSettings
from sentinel_agent.core.model import Target, TargetId
from sentinel_agent.core.rule import CaptureSpec
from sentinel_agent.errors import NotPermittedError
from tests.capture.targets import fake_py_spy, made_target, service, window

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from sentinel_agent.testing import FakeClock

ONE, TWO = made_target(TargetId(1, 1)), made_target(TargetId(2, 1))


@dataclass
class Made:
    """A capture whose doing is given; writes `<kind>.txt` of `size` bytes first."""

    kind: str
    attaches: bool = True
    size: int = 3
    doing: Callable[[CapturePlan], Awaitable[None]] | None = None
    plans: list[CapturePlan] = field(default_factory=list)
    names: tuple[str, ...] | None = None

    async def capture(self, plan: CapturePlan) -> CaptureResult:
        self.plans.append(plan)
        name = f"{self.kind}.txt"
        (plan.folder / name).write_bytes(b"x" * self.size)
        if self.doing:
            await self.doing(plan)
        files = tuple(CapturedFile(name, self.kind, "text") for name in self.names or (name,))
        return CaptureResult(files, pause_us=5, lost_samples=2, note="fine")


def runner(*captures: Any, clock: FakeClock | None = None, **settings: Any) -> CaptureRunner:
    loaded = LoadedCaptures(
        {c.kind: c for c in (*captures, SeriesCapture())}, broken={"bad": "the plug-in 'bad' cannot be used"}
    )
    return CaptureRunner(loaded, CaptureSettings(**settings), clock=clock)


async def run(made: CaptureRunner, folder: Path, *specs: str | CaptureSpec, target: Target = ONE) -> Captured:
    folder.mkdir(exist_ok=True)
    wanted = [CaptureSpec(spec) if isinstance(spec, str) else spec for spec in specs]
    return await made.run(target, wanted, folder=folder, trigger_time=1.0, series=window)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_captures_run_in_order_and_the_series_is_always_there(tmp_path: Path) -> None:
    captured = await run(runner(Made("b"), Made("a")), tmp_path, "b", "a")
    assert [report.kind for report in captured.reports] == ["b", "a", "series"]
    assert [file.name for file in captured.files] == ["b.txt", "a.txt", "series.json"]
    assert names(tmp_path) == ["a.txt", "b.txt", "series.json"]


async def test_a_series_that_is_asked_for_is_taken_once(tmp_path: Path) -> None:
    captured = await run(runner(Made("a")), tmp_path, "series", "a")
    assert [report.kind for report in captured.reports] == ["series", "a"]


async def test_a_report_says_how_long_what_was_lost_and_how_long_the_target_was_stopped(
    tmp_path: Path, fake_clock: FakeClock
) -> None:
    async def three_seconds(_: CapturePlan) -> None:
        fake_clock.advance(3.0)

    captured = await run(runner(Made("a", doing=three_seconds), clock=fake_clock), tmp_path, "a")
    report = captured.reports[0]
    assert (report.status, report.reason, report.seconds, report.pause_us, report.lost_samples) == (
        "ok",
        "fine",
        3.0,
        5,
        2,
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "memory",
            "the memory captures are `heap` (only reads), `tracemalloc`, `memray` and `gc` (run code in the target)",
        ),
        ("bad", "the plug-in 'bad' cannot be used"),
        ("nonsense", "there is no capture 'nonsense'; there are a, series"),
    ],
)
async def test_a_kind_that_is_not_there_is_skipped_with_the_reason(
    kind: str, words: str, tmp_path: Path
) -> None:
    captured = await run(runner(Made("a")), tmp_path, kind, "a")
    assert [(r.status, r.reason) for r in captured.reports[:2]] == [("skipped", words), ("ok", "fine")]


async def test_settings_fill_in_what_the_rule_leaves_out(tmp_path: Path) -> None:
    made = Made("a")
    await run(
        runner(made, profile_duration=2.0, profile_rate=50, timeout=4.0, redact=False),
        tmp_path,
        "a",
        CaptureSpec("a", duration=30.0, rate=7, max_bytes=5000, pause=True),
    )
    short, long = made.plans
    assert (short.duration, short.rate, short.max_bytes, short.deadline) == (2.0, 50, 16 * 1024**2, 4.0 + 2.0)
    assert (long.duration, long.rate, long.max_bytes, long.deadline) == (30.0, 7, 5000, 4.0 + 30.0)
    assert (short.redact, short.spec.pause, long.spec.pause) == (False, False, True)


async def _refused(_: CapturePlan) -> None:
    raise NotPermittedError("may not be read", hint="be root")


async def _broken(_: CapturePlan) -> None:
    raise ZeroDivisionError("oops")


async def _leaving(_: CapturePlan) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("doing", "words"),
    [
        (_refused, "may not be read (be root)"),
        (_broken, "ZeroDivisionError: oops"),
        (_leaving, "SystemExit: 3"),
    ],
)
async def test_a_capture_that_fails_says_why_and_leaves_nothing(
    doing: Callable[[CapturePlan], Awaitable[None]], words: str, tmp_path: Path
) -> None:
    """The half file that it had written is gone, and the next capture runs."""
    captured = await run(runner(Made("a", doing=doing), Made("b")), tmp_path, "a", "b")
    assert [(r.kind, r.status) for r in captured.reports] == [("a", "failed"), ("b", "ok"), ("series", "ok")]
    assert captured.reports[0].reason == words
    assert names(tmp_path) == ["b.txt", "series.json"]


async def test_a_capture_that_hangs_is_ended_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: CapturePlan) -> None:
        await asyncio.Event().wait()

    made = runner(Made("a", doing=hang), profile_duration=0.1)
    monkeypatch.setattr(made, "_settings", CaptureSettings(timeout=0.05, profile_duration=0.1))
    captured = await run(made, tmp_path, "a")
    assert (captured.reports[0].status, captured.reports[0].reason) == ("timeout", "did not end within 150ms")
    assert names(tmp_path) == ["series.json"]


async def test_files_over_the_limit_are_removed_and_reported(tmp_path: Path) -> None:
    captured = await run(runner(Made("a", size=1025)), tmp_path, CaptureSpec("a", max_bytes=1024))
    assert captured.reports[0].status == "failed"
    assert "it wrote 1.0 KiB, the limit is 1.0 KiB" in captured.reports[0].reason
    assert names(tmp_path) == ["series.json"]


@pytest.mark.parametrize("named", ["../a.txt", "missing.txt", "link.txt", "", ".", "sub/a.txt"])
async def test_a_capture_cannot_name_a_file_that_is_not_its_own(named: str, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("mine")

    async def link(plan: CapturePlan) -> None:
        (plan.folder / "link.txt").symlink_to(tmp_path / "outside.txt")
        (plan.folder / "sub").mkdir()
        (plan.folder / "sub/a.txt").write_text("x")

    folder = tmp_path / "incident"
    captured = await run(runner(Made("a", doing=link, names=(named,))), folder, "a")
    assert "no plain file in its folder" in captured.reports[0].reason
    assert names(folder) == ["series.json"]


async def test_a_capture_cannot_fill_the_folder_with_files(tmp_path: Path) -> None:
    captured = await run(runner(Made("a", names=("a.txt",) * 33)), tmp_path, "a")
    assert captured.reports[0].reason == "it wrote 33 files, the limit is 32"


async def test_the_same_kind_twice_keeps_both_files(tmp_path: Path) -> None:
    captured = await run(runner(Made("a")), tmp_path, "a", "a", "a")
    assert [file.name for file in captured.files] == ["a.txt", "a-2.txt", "a-3.txt", "series.json"]


async def test_a_step_whose_guard_holds_is_skipped_with_what_was_seen(tmp_path: Path) -> None:
    """The light step before it runs, the heavy one is not begun; a guard on a reading that is not there skips too."""
    heavy = Made("heavy")
    guarded: list[str | CaptureSpec] = [
        "light",
        CaptureSpec("heavy", skip_when="cpu > 95"),
        CaptureSpec("heavy", skip_when="rss_limit > 85"),
        CaptureSpec("heavy", skip_when="cpu > 99"),
    ]
    captured = await run(runner(Made("light"), heavy), tmp_path, *guarded)
    assert [report.status for report in captured.reports] == ["ok", "skipped", "skipped", "ok", "ok"]
    assert "cpu is 97.5%" in captured.reports[1].reason
    assert "rss_limit is not known" in captured.reports[2].reason
    assert len(heavy.plans) == 1


async def test_a_step_that_stopped_its_target_for_too_long_is_not_begun_again(tmp_path: Path) -> None:
    """It took 5 us the first time; with a cap of 4 us the second is skipped, on this target and for this kind only."""
    made = runner(Made("heavy"), Made("other"))
    capped = CaptureSpec("heavy", max_pause=4e-6)
    first = await run(made, tmp_path / "1", capped)
    again = await run(made, tmp_path / "2", capped, "other", CaptureSpec("heavy", max_pause=6e-6))
    elsewhere = await run(made, tmp_path / "3", capped, target=TWO)
    assert first.reports[0].status == elsewhere.reports[0].status == "ok"
    assert [report.status for report in again.reports] == ["skipped", "ok", "ok", "ok"]
    assert "max_pause allows" in again.reports[0].reason


async def test_a_step_has_its_own_timeout_and_cap(tmp_path: Path) -> None:
    """Both stand in its plan; without them the settings do."""
    heavy = Made("heavy")
    made = runner(heavy, timeout=15.0, max_pause=0.2)
    await run(made, tmp_path, CaptureSpec("heavy", timeout=2.0, duration=1.0, max_pause=0.05), "heavy")
    assert [(plan.deadline, plan.max_pause) for plan in heavy.plans] == [(3.0, 0.05), (15.6, 0.2)]


@dataclass
class Crowd:
    """Counts how many captures are inside at the same time, overall and for each target."""

    inside: list[TargetId] = field(default_factory=list)
    most: int = 0
    most_of_one: int = 0

    async def __call__(self, plan: CapturePlan) -> None:
        self.inside.append(plan.target.id)
        self.most = max(self.most, len(self.inside))
        self.most_of_one = max(self.most_of_one, *(self.inside.count(one) for one in self.inside))
        for _ in range(5):
            await asyncio.sleep(0)
        self.inside.remove(plan.target.id)


async def _crowd(made: CaptureRunner, tmp_path: Path, targets: Iterable[Target]) -> None:
    async with asyncio.TaskGroup() as group:
        for number, target in enumerate(targets):
            group.create_task(run(made, tmp_path / str(number), "a", target=target))


async def test_captures_that_attach_take_turns_on_a_target(tmp_path: Path) -> None:
    crowd = Crowd()
    made = runner(Made("a", doing=crowd), concurrency=16)
    await _crowd(made, tmp_path, [ONE, ONE, ONE, TWO, TWO])
    assert (crowd.most, crowd.most_of_one) == (2, 1)
    assert made._turns == {}
    assert made.statistics().finished == {"ok": 10}


async def test_captures_that_only_read_proc_need_no_turn(tmp_path: Path) -> None:
    crowd = Crowd()
    await _crowd(runner(Made("a", attaches=False, doing=crowd), concurrency=16), tmp_path, [ONE, ONE, ONE])
    assert crowd.most_of_one == 3


async def test_no_more_captures_run_at_once_than_the_budget_allows(tmp_path: Path) -> None:
    crowd = Crowd()
    targets = [made_target(TargetId(pid, 1)) for pid in range(1, 9)]
    await _crowd(runner(Made("a", doing=crowd), concurrency=3), tmp_path, targets)
    assert crowd.most == 3


async def test_cancelling_kills_py_spy_and_passes_the_cancellation_on(tmp_path: Path) -> None:
    """The agent stops in the middle of a capture: no child, no half file, no slot is left taken."""
    fake = fake_py_spy(tmp_path, "sleep 100\n")
    made = runner(StacksCapture(py_spy=fake))
    folder = tmp_path / "incident"
    with service(tmp_path) as target:
        task = asyncio.create_task(run(made, folder, "stacks", target=target))
        async with asyncio.timeout(10):
            while not fake.pid_file.exists():
                await asyncio.sleep(0.01)
        assert made.statistics().running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert fake.left() == []
    assert names(folder) == []
    assert made.statistics().running == 0
    assert not made._slots.locked()


@dataclass
class Plug:
    name: str
    made: Any

    def load(self) -> Any:
        if isinstance(self.made, BaseException):
            raise self.made
        return self.made


def test_strangers_captures_are_loaded_beside_the_built_in_ones() -> None:
    loaded = load_captures(plugs=[Plug("mine", lambda: Made("mine"))])
    assert sorted(loaded.captures) == [
        "gc",
        "heap",
        "memray",
        "mine",
        "process",
        "profile",
        "series",
        "stacks",
        "tasks",
        "tracemalloc",
    ]
    assert loaded.broken == {}


class _WithoutKind:
    pass


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (ImportError("no module"), "ImportError: no module"),
        (SystemExit(3), "SystemExit: 3"),
        (_WithoutKind, "AttributeError"),
        (lambda: Made(3), "TypeError: a capture has"),  # type: ignore[arg-type]  # the fault under test
        (lambda: Made("stacks"), "the kind 'stacks' is taken"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        ("text", "TypeError"),
    ],
)
def test_a_broken_plug_in_is_kept_with_the_reason_and_harms_nothing(made: Any, words: str) -> None:
    loaded = load_captures(plugs=[Plug("bad", made)])
    assert words in loaded.broken["bad"]
    assert sorted(loaded.captures) == [
        "gc",
        "heap",
        "memray",
        "process",
        "profile",
        "series",
        "stacks",
        "tasks",
        "tracemalloc",
    ]
    assert loaded.missing("bad") == loaded.broken["bad"]


def test_installed_packages_are_looked_at() -> None:
    """Without an argument the entry points of the environment are used; a clean one has no broken plug-in."""
    assert load_captures().broken == {}
