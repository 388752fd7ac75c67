"""Grafana's own flame graph component draws our answers, in headless Chromium; screenshots stay in `.cache/screenshots`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sentinel_agent.store.store import Store
from sentinel_agent.testing import FakeClock
from tests import needs
from tests.api.support import CPU, client_of, files_of, hostile_recording, save_spike
from tests.interop.support import artifact
from tests.profile.records import HOSTILE
from tests.store.helpers import SETTINGS, START, save

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]
_PAGE = '<!doctype html><meta charset="utf-8"><body style="background:#111217"><div id="root"></div><script>window.answer={answer};</script><script src="{bundle}"></script>'


async def ask(store: Store, method: str, **request: Any) -> Any:
    """A call of Drilldown's."""
    async with client_of(store, FakeClock()) as client:
        response = await client.post(
            f"/querier.v1.QuerierService/{method}",
            data=msgspec.json.encode(request),
            headers={"Content-Type": "application/json"},
        )
        assert response.status == 200
        return await response.json()


async def drawn(answer: Any, folder: Path, name: str) -> tuple[int, str]:
    """How many bars the component was given, and the words that it shows."""
    bundle = artifact("flamegraph/bundle.js")
    text = msgspec.json.encode(answer).decode().replace("<", "\\u003c")
    (folder / "page.html").write_text(_PAGE.format(answer=text, bundle=bundle.as_uri()))
    trouble: list[str] = []
    playwright = import_module("playwright.async_api")
    shots = artifact("").parent / "screenshots"
    shots.mkdir(exist_ok=True)
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=needs.program("chromium"), args=["--no-sandbox"]
        )
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        await page.goto((folder / "page.html").as_uri())
        await page.locator("canvas").first.wait_for(timeout=60_000)
        await page.wait_for_timeout(500)
        await page.screenshot(path=str(shots / f"grafana-{name}.png"))
        bars, words = int((await page.title()).split()[0]), await page.locator("body").inner_text()
        await browser.close()
    assert trouble == []
    return bars, words


async def test_it_draws_a_flame_graph_and_a_difference(tmp_path: Path) -> None:
    """With the functions, their files, and the times that the incident has."""
    store = Store(tmp_path / "data", SETTINGS, FakeClock()).open()
    saved = save_spike(store)
    side = {"profileTypeID": CPU, "labelSelector": f'{{dump_id="{saved}"}}'}
    bars, words = await drawn(await ask(store, "SelectMergeStacktraces", **side), tmp_path, "flamegraph")
    assert bars == 4
    assert "checksum (app/rows.py)" in words
    assert "8.75 s" in words
    phases = {
        name: {"profileTypeID": CPU, "labelSelector": f'{{dump_id="{saved}",phase="{phase}"}}'}
        for name, phase in (("left", "before"), ("right", "during"))
    }
    bars, words = await drawn(await ask(store, "Diff", **phases), tmp_path, "difference")
    assert bars == 4
    assert "checksum (app/rows.py)" in words


async def test_hostile_names_are_only_names(tmp_path: Path) -> None:
    """Scripts, 100 KB, NUL, marks that turn the direction, invalid UTF-8: it draws them, and nothing runs."""
    store = Store(tmp_path / "data", SETTINGS, FakeClock()).open()
    save(store, files=files_of(hostile_recording(START), START))
    answer = await ask(store, "SelectMergeStacktraces", profileTypeID=CPU)
    bars, words = await drawn(answer, tmp_path, "hostile")
    assert bars == 1 + sum(1 for name in HOSTILE if name)
    assert "<script>alert(1)</script>" in words
    assert not set("\0\u202e\x1b") & set(words)
