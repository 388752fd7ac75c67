"""The web page in headless Chromium: a person's path, hostile names, keyboard. Screenshots stay in `.cache/screenshots`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sentinel_agent.profile import pprof, speedscope
from tests import needs
from tests.api.support import MadeUpAgent, evidence_files, files_of, recording, save_spike, served
from tests.api.test_clients import NODE, installed
from tests.profile.records import HOSTILE
from tests.store.helpers import START, save

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sentinel_agent.store.store import Store
    from sentinel_agent.testing import FakeClock

SHOTS = Path(__file__).parent.parent.parent / ".cache" / "screenshots"


@pytest.fixture(scope="module")
def chromium() -> str:
    """Debian's."""
    return needs.program("chromium")


@asynccontextmanager
async def opened(
    chromium: str, store: Store, clock: Any, *, path: str = "/", live: Any = None, **options: Any
) -> AsyncIterator[Any]:
    """A page of a running application; a word in the console, a script error or a request elsewhere fails the test."""
    trouble: list[str] = []
    playwright = import_module("playwright.async_api")
    async with served(store, clock, live) as base, playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = await browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        page = await context.new_page()
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                trouble.append(request.url) if not request.url.startswith((base, "blob:")) else None
            ),
        )
        await page.goto(base + path)
        yield page
        await browser.close()
    assert trouble == []


async def shoot(page: Any, name: str) -> None:
    """Keep a picture, to be looked at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=str(SHOTS / f"{name}.png"), full_page=True)


async def hottest(page: Any) -> list[str]:
    """The functions of the table under the flame graph."""
    found: list[str] = await page.locator(
        "section[aria-label='Hottest functions'] tbody .mono"
    ).all_text_contents()
    return found


@pytest.mark.timeout(180)
async def test_a_persons_path(store: Store, fake_clock: FakeClock, chromium: str, tmp_path: Path) -> None:
    """Open the newest incident, drag over the spike, find the hot function, compare, search, zoom, download the pprof."""
    save_spike(store, START - 500)
    save_spike(store, START, summary="CPU 95.0 % is above 90 %, the newest")
    async with opened(chromium, store, fake_clock, accept_downloads=True) as page:
        rows = page.locator("tbody tr")
        await rows.first.wait_for()
        assert await rows.count() == 2
        await page.get_by_role("searchbox").fill("newest")
        assert await rows.count() == 1
        await shoot(page, "list")
        await rows.first.get_by_role("link").click()
        await page.locator(".answer .big").wait_for()
        assert (
            "checksum took 100 % of the CPU since the trigger" in await page.locator(".answer").inner_text()
        )
        assert set(await hottest(page)) == {"checksum", "handle"}

        chart = page.locator(".timeline canvas")
        await chart.scroll_into_view_if_needed()
        box = await chart.bounding_box()
        left, width = box["x"] + 62, box["width"] - 74  # the plot: see timeline.js
        y = box["y"] + 60
        await page.mouse.move(left + width * 0.80, y)
        await page.mouse.down()
        await page.mouse.move(left + width * 0.95, y, steps=5)
        await page.mouse.up()
        await page.locator("section[aria-label='Timeline'] .note", has_text="slice of").wait_for()
        assert await hottest(page) == ["checksum"]
        await shoot(page, "slice")

        await page.get_by_role("button", name="Difference").click()
        assert "Rest" in await page.locator("section[aria-label='Hottest functions'] thead").inner_text()
        await shoot(page, "difference")
        await page.get_by_role("button", name="On CPU").click()
        await page.get_by_label("Search function or file").fill("rows.py")
        assert "100 % found" in await page.locator("section[aria-label='Flame graph'] header").inner_text()

        await page.locator(".flame canvas").focus()
        for key in ("ArrowDown", "ArrowDown", "Enter"):
            await page.keyboard.press(key)
        assert "handle" in await page.locator(".flame [role=status]").text_content()
        assert await page.get_by_role("button", name="Zoom out").is_enabled()
        await page.keyboard.press("Escape")
        assert await page.get_by_role("button", name="Zoom out").is_disabled()

        async with page.expect_download() as downloading:
            await page.get_by_role("link", name="stacks.pb.gz").click()
        await (await downloading.value).save_as(tmp_path / "it.pb.gz")
    assert pprof.decode((tmp_path / "it.pb.gz").read_bytes()).samples


@pytest.mark.timeout(180)
async def test_speedscope_opens_the_timeline(store: Store, chromium: str, tmp_path: Path) -> None:
    """The file passes speedscope's own schema, and speedscope itself shows its thread and functions."""
    release = installed(NODE / "node_modules" / "speedscope" / "dist" / "release")
    timeline = store.artifact(save_spike(store), "stacks.speedscope.json").read_bytes()
    schema = msgspec.json.decode((release / "file-format-schema.json").read_bytes())
    import_module("jsonschema").validate(msgspec.json.decode(timeline), schema)
    (tmp_path / "spike.speedscope.json").write_bytes(timeline)
    trouble: list[str] = []
    async with import_module("playwright.async_api").async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        for event in ("pageerror", "dialog"):
            page.on(event, lambda found: trouble.append(str(found)))
        await page.goto((release / "index.html").as_uri())
        await page.locator("input[type=file]").set_input_files(tmp_path / "spike.speedscope.json")
        await page.get_by_text('Thread 4711 "MainThread"').wait_for()
        await page.get_by_text("Sandwich").click()
        await page.get_by_text("checksum").first.wait_for()
        await shoot(page, "speedscope")
        await browser.close()
    assert trouble == []


@pytest.mark.timeout(180)
async def test_hostile_names_are_only_names(store: Store, fake_clock: FakeClock, chromium: str) -> None:
    """Scripts, 100 KB, NUL, marks that turn the direction, invalid UTF-8: nothing runs, nothing breaks, everything is shown."""
    record = recording(START - 15, spike=15, hot="<img src=x onerror=alert(1)>")
    names = [name for name in HOSTILE if name]
    frames = [
        {"function": name.encode("utf-8", "backslashreplace").decode(), "file": "/<b>/\u202eyp.x", "line": 1}
        for name in names
    ]
    files = files_of(record, START) | evidence_files(names)
    files["stacks.json"] = msgspec.json.encode(
        {
            "threads": [
                {
                    "native_id": 1,
                    "name": "<script>alert(1)</script>",
                    "state": "running",
                    "gil": True,
                    "frames": frames,
                }
            ]
        }
    )
    tasks = msgspec.json.decode(files["tasks.json"])
    tasks["groups"] = [
        {
            "count": 9,
            "coroutine": frame["function"],
            "states": {},
            "frames": [frame],
            "waiting_on": "<i>",
            "names": [],
        }
        for frame in frames
    ]
    files["tasks.json"] = msgspec.json.encode(tasks)
    timeline = msgspec.json.decode(speedscope.encode(record, since=START))
    timeline["shared"]["frames"] += [{"name": frame["function"], "file": frame["file"]} for frame in frames]
    for number in range(len(frames)):
        timeline["profiles"][0]["samples"][-1].append(len(timeline["shared"]["frames"]) - 1 - number)
    files["stacks.speedscope.json"] = msgspec.json.encode(timeline)
    saved = save(
        store,
        files=files,
        rule="<script>alert(1)</script>",
        summary="\u202e<svg onload=alert(1)> " + "x" * 5000,
    )
    async with opened(chromium, store, fake_clock) as page:
        await page.locator("tbody tr").first.wait_for()
        assert await page.locator("tbody .tag").first.inner_text() == "<script>alert(1)</script>"
        await page.goto(page.url.split("#")[0] + f"#/incidents/{saved}")
        await page.locator(".answer").wait_for()
        await page.locator(".flame canvas").hover()
        for summary in await page.locator("section[aria-label='Tasks'] summary").all():
            await summary.click()
        await page.get_by_role("button", name="Who awaits whom").click()
        await page.locator(".branch details").nth(3).wait_for()
        assert await page.locator("main script, main img, main svg, main b b, main i i").count() == 0
        assert "\u202e" not in await page.locator("main").inner_text()
        assert "<script>alert(1)</script>" in await page.locator("main h1").inner_text()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await shoot(page, "hostile")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
async def test_every_page_fits(
    store: Store, fake_clock: FakeClock, chromium: str, scheme: str, width: int
) -> None:
    """In both schemes and on a telephone: nothing is wider than the window."""
    saved = save_spike(store)
    fake_clock.advance(20)
    async with opened(
        chromium,
        store,
        fake_clock,
        live=MadeUpAgent(),
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
    ) as page:
        base = page.url.split("#")[0]
        for path, ready in (
            ("", "tbody tr"),
            (f"incidents/{saved}", ".flame canvas"),
            ("targets", ".empty"),
            ("rules", ".empty"),
        ):
            await page.goto(f"{base}#/{path}")
            await page.locator(f"main {ready}").first.wait_for()
            await asyncio.sleep(0.1)
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
            await shoot(page, f"{path.split('/')[0] or 'list'}-{scheme}-{width}")


@pytest.mark.timeout(180)
async def test_findings_come_first(store: Store, fake_clock: FakeClock, chromium: str) -> None:
    """What the agent concluded is on top, with why and what to do next; others and what is not known are one step away."""
    found = [
        {
            "check": "cpu",
            "score": 90,
            "text": "checksum <b>burns</b> the CPU",
            "evidence": ["95 % of it"],
            "next_step": "do it elsewhere",
        },
        {"check": "io", "score": 10, "text": "the disk is busy", "evidence": [], "next_step": ""},
    ]
    document = {"findings": found, "not_known": [{"check": "locks", "why": "not read"}], "nothing_found": []}
    files = files_of(recording(START - 15, spike=15), START) | {
        "findings.json": msgspec.json.encode(document)
    }
    saved = save(store, files=files)
    async with opened(chromium, store, fake_clock, path=f"/#/incidents/{saved}") as page:
        card = page.get_by_label("Finding")
        assert await card.locator(".big").inner_text() == "checksum <b>burns</b> the CPU"
        words = await card.inner_text()
        assert "95 % of it" in words
        assert "Next: do it elsewhere" in words
        await card.get_by_text("What is not known").click()
        assert "locks: not read" in await card.inner_text()
        await shoot(page, "findings")


@pytest.mark.timeout(180)
async def test_a_leak_in_the_proxy(store: Store, fake_clock: FakeClock, chromium: str) -> None:
    """Objects, allocations, requests and who awaits whom are shown as the captures wrote them."""
    saved = save(store, files=files_of(recording(START - 15, spike=15), START) | evidence_files())
    async with opened(chromium, store, fake_clock, path=f"/#/incidents/{saved}") as page:
        await page.locator(".answer").wait_for()
        objects = await page.get_by_role("region", name="Objects that grew").inner_text()
        assert "Session" in objects
        assert "+5,000" in objects
        assert "full collection in between" in objects
        assert "Session:7" in await page.get_by_role("region", name="Lines that allocated").inner_text()
        assert "on the loop" in await page.get_by_role("region", name="Requests under way").inner_text()
        failed = await page.get_by_role("region", name="Failed requests").inner_text()
        assert "504 UT" in failed
        assert "4bf92f3577b34da6" in failed
        assert "12 (1.2 %)" in await page.get_by_role("region", name="Routes").inner_text()
        tasks = page.get_by_role("region", name="Tasks")
        await tasks.get_by_role("button", name="Who awaits whom").press("Enter")
        top = tasks.locator(".branch.first > details")
        assert await top.count() == 1
        assert "serve" in await top.locator("> summary").inner_text()
        assert "2 \u00d7 Session" in await top.locator(".branch > details > summary").inner_text()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await shoot(page, "leak")


@pytest.mark.timeout(180)
async def test_what_is_not_there_and_what_is_empty(
    store: Store, fake_clock: FakeClock, chromium: str
) -> None:
    """An empty store says what to do; and filters survive a reload through the address."""
    async with opened(chromium, store, fake_clock) as page:
        await page.locator(".empty", has_text="No incidents yet").wait_for()
        save_spike(store, START - 60, rule="other")
        save_spike(store)
        await page.locator("tbody tr").nth(1).wait_for(timeout=15_000)  # it came by itself
        await page.get_by_label("Rule").select_option("other")
        assert await page.locator("tbody tr").count() == 1
        await page.reload()
        await page.locator("tbody tr").first.wait_for()
        assert (await page.locator("tbody tr").count(), "rule=other" in page.url) == (1, True)
