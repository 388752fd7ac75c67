"""`/api/v1`, health, the page's files and the gate before them all, through real HTTP."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import msgspec
import pytest

from sentinel_agent.api.guard import Address, Guard
from sentinel_agent.profile import pprof, speedscope
from tests.api.support import MadeUpAgent, client_of, save_spike
from tests.store.helpers import START

if TYPE_CHECKING:
    from sentinel_agent.store.store import Store
    from sentinel_agent.testing import FakeClock

JSON = {"Content-Type": "application/json"}


async def test_incidents_are_listed_and_filtered(store: Store, fake_clock: FakeClock) -> None:
    """Newest first, with the filters of the command line; the document and each artifact come as they were saved."""
    first, second = save_spike(store, START), save_spike(store, START + 100, rule="other")
    async with client_of(store, fake_clock) as client:

        async def ids(query: str) -> list[str]:
            return [row["id"] for row in await (await client.get(f"/api/v1/incidents{query}")).json()]

        assert await ids("") == [second, first]
        assert await ids("?rule=cpu-spike") == [first]
        assert await ids("?target=gateway/host-a&limit=1") == [second]
        assert await ids(f"?since={START + 50}") == [second]
        assert await ids(f"?until={START + 50}") == [first]
        document = await (await client.get(f"/api/v1/incidents/{first}")).json()
        assert document["id"] == first
        for artifact in document["artifacts"]:
            response = await client.get(f"/api/v1/incidents/{first}/artifacts/{artifact['name']}")
            assert len(await response.read()) == artifact["bytes"]
            assert (
                response.headers["Content-Disposition"]
                == f'attachment; filename="{first}-{artifact["name"]}"'
            )
            assert "Content-Encoding" not in response.headers


async def test_a_captured_file_is_what_its_format_says(store: Store, fake_clock: FakeClock) -> None:
    """The pprof and the speedscope file that are downloaded can be read."""
    saved = save_spike(store)
    async with client_of(store, fake_clock) as client:
        base = f"/api/v1/incidents/{saved}/artifacts"
        assert pprof.decode(await (await client.get(f"{base}/stacks.pb.gz")).read()).samples
        assert speedscope.decode(await (await client.get(f"{base}/stacks.speedscope.json")).read()).samples


@pytest.mark.parametrize(
    "path",
    [
        "incidents/nope",
        "incidents/20231114T221320.000Z-ffff",
        "incidents/..%2F..%2Fetc",
        "incidents/{id}/artifacts/nope.json",
        "incidents/{id}/artifacts/..%2F..%2Findex.sqlite3",
        "incidents/{id}/artifacts/.hidden",
        "targets/1/series",
        "targets/x/stacks",
        "captures/nope",
        "nope",
    ],
)
async def test_what_is_not_there_is_said(store: Store, fake_clock: FakeClock, path: str) -> None:
    """404 with the error document, whatever is in the path."""
    saved = save_spike(store)
    async with client_of(store, fake_clock, live=MadeUpAgent()) as client:
        response = await client.get(f"/api/v1/{path.replace('{id}', saved)}")
        error = (await response.json())["error"]
        assert (response.status, error["code"]) == (404, "not_found")
        assert set(error) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=x",
        "limit=99999999999999",
        "since=now",
        "until=inf",
        "since=nan",
        "rule=" + "x" * 2000,
    ],
)
async def test_bad_questions_are_refused(store: Store, fake_clock: FakeClock, query: str) -> None:
    """400, with what was found and what is expected."""
    async with client_of(store, fake_clock) as client:
        response = await client.get(f"/api/v1/incidents?{query}")
        assert response.status == 400


async def test_health(store: Store, fake_clock: FakeClock) -> None:
    """Alive, ready, and no figures for Prometheus where no exporter makes them."""
    save_spike(store)
    async with client_of(store, fake_clock, live=MadeUpAgent()) as client:
        assert (await client.get("/healthz")).status == 200
        ready = await (await client.get("/readyz")).json()
        assert ready == {"status": "ok", "incidents": 1, "targets": 1, "agent": True}
        response = await client.get("/metrics")
        assert (response.status, (await response.json())["error"]["code"]) == (404, "no_metrics")


async def test_a_store_that_cannot_be_read_is_not_ready(store: Store, fake_clock: FakeClock) -> None:
    """503, and the process still lives."""
    (store.data_dir / "incidents").rmdir()
    (store.data_dir / "incidents").write_text("a file in the place of the folder")
    async with client_of(store, fake_clock) as client:
        assert (await client.get("/readyz")).status == 503
        assert (await client.get("/healthz")).status == 200


async def test_metrics_are_handed_through(store: Store, fake_clock: FakeClock) -> None:
    """The exporter gets what the client accepts, and its content type is kept to the letter."""
    asked: list[str | None] = []

    def render(accept: str | None) -> tuple[str, bytes]:
        asked.append(accept)
        return "text/plain; version=0.0.4; charset=utf-8", b"sentinel_up 1\n"

    async with client_of(store, fake_clock, metrics=render) as client:
        response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
        assert await response.read() == b"sentinel_up 1\n"
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert asked == ["application/openmetrics-text"]


async def test_a_live_target(store: Store, fake_clock: FakeClock) -> None:
    """Its readings and its stacks of the last minutes, as a timeline."""
    fake_clock.advance(20)
    async with client_of(store, fake_clock, live=MadeUpAgent(START)) as client:
        series = await (await client.get("/api/v1/targets/4711/series")).json()
        assert len(series["metrics"]["cpu"]["times"]) == 20
        record = speedscope.decode(await (await client.get("/api/v1/targets/4711/stacks")).read())
        assert record.seconds == 20
        empty = await client.get(f"/api/v1/targets/4711/stacks?since={START + 9}&until={START + 9}")
        assert empty.status == 400


async def test_without_an_agent_only_the_store_is_shown(store: Store, fake_clock: FakeClock) -> None:
    """What needs an agent says so."""
    async with client_of(store, fake_clock) as client:
        assert await (await client.get("/api/v1/targets")).json() == []
        assert await (await client.get("/api/v1/rules")).json() == []
        for response in (
            await client.get("/api/v1/targets/4711/stacks"),
            await client.post("/api/v1/captures", data=b'{"pid": 4711}', headers=JSON),
        ):
            assert (await response.json())["error"]["code"] == "no_agent"


async def test_a_capture_is_accepted_followed_and_found(store: Store, fake_clock: FakeClock) -> None:
    """202 with where to ask; a second one of the same target is told to wait; in the end there is an incident."""
    agent = MadeUpAgent()
    agent.captured = asyncio.get_running_loop().create_future()
    async with client_of(store, fake_clock, live=agent) as client:
        body = msgspec.json.encode({"pid": 4711, "captures": ["stacks"]})
        response = await client.post("/api/v1/captures", data=body, headers=JSON)
        place = response.headers["Location"]
        assert (response.status, (await response.json())["state"]) == (202, "running")
        busy = await client.post("/api/v1/captures", data=body, headers=JSON)
        assert (busy.status, busy.headers["Retry-After"]) == (429, "5")
        assert (await (await client.get(place)).json())["state"] == "running"
        agent.captured.set_result(None)
        await asyncio.sleep(0)
        job = await (await client.get(place)).json()
        assert (job["state"], job["incident"]) == ("done", "20231114T221320.000Z-0001")
    assert agent.asked == [(4711, ("stacks",))]


async def test_a_capture_can_be_ended(store: Store, fake_clock: FakeClock) -> None:
    """It is cancelled, and the target is free for the next one."""
    agent = MadeUpAgent()
    agent.captured = asyncio.get_running_loop().create_future()
    async with client_of(store, fake_clock, live=agent) as client:
        response = await client.post("/api/v1/captures", data=b'{"pid": 4711}', headers=JSON)
        job = await (await client.delete(response.headers["Location"])).json()
        assert job["state"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", JSON, 400),
        (b"[", JSON, 400),
        (b'{"pid": 4711, "captures": []}', JSON, 400),
        (b'{"pid": 4711, "captures": ["nope"]}', JSON, 400),
        (b'{"pid": 4711, "captures": ["stacks","stacks","stacks","stacks"]}', JSON, 400),
        (b'{"pid": 4711, "duration": 1e9}', JSON, 400),
        (b'{"pid": 4711, "wrong": 1}', JSON, 400),
        (b'{"pid": 1}', JSON, 404),
        (b"pid=4711", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b'{"pid": 4711}', {"Content-Type": "text/plain"}, 415),
        (b'{"pid": 4711}', JSON | {"Origin": "http://evil.example"}, 403),
        (b" " * 2_000_000, JSON, 413),
    ],
)
async def test_what_is_no_capture_request(
    store: Store, fake_clock: FakeClock, body: bytes, headers: dict[str, str], status: int
) -> None:
    """Refused with the status that says whose fault it is; nothing is captured."""
    agent = MadeUpAgent()
    async with client_of(store, fake_clock, live=agent) as client:
        response = await client.post("/api/v1/captures", data=io.BytesIO(body), headers=headers)
        assert (response.status, "error" in await response.json()) == (status, True)
    assert agent.asked == []


async def test_deleting(store: Store, fake_clock: FakeClock) -> None:
    """An incident goes for good; a page of another site cannot do it."""
    saved = save_spike(store)
    async with client_of(store, fake_clock) as client:
        foreign = await client.delete(f"/api/v1/incidents/{saved}", headers={"Sec-Fetch-Site": "cross-site"})
        assert foreign.status == 403
        assert (await client.delete(f"/api/v1/incidents/{saved}")).status == 204
        assert (await client.get(f"/api/v1/incidents/{saved}")).status == 404


async def test_tokens_where_others_reach_it(store: Store, fake_clock: FakeClock) -> None:
    """Health and the page's own files are open, the rest needs a token, and captures need one of their own."""
    guard = Guard(Address("0.0.0.0", 0), ("r" * 20,), ("c" * 20,))
    read, capture = ({"Authorization": f"Bearer {letter * 20}"} for letter in "rc")
    saved = save_spike(store)
    async with client_of(store, fake_clock, guard=guard) as client:
        for path in ("/healthz", "/readyz", "/", "/assets/main.js"):
            assert (await client.get(path)).status == 200
        for path in ("/api/v1/incidents", "/metrics", "/pyroscope/render"):
            response = await client.get(path)
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert (await client.get("/api/v1/incidents", headers=read)).status == 200
        assert (await client.delete(f"/api/v1/incidents/{saved}", headers=read)).status == 403
        assert (await client.delete(f"/api/v1/incidents/{saved}", headers=capture)).status == 204
        connect = await client.post(
            "/querier.v1.QuerierService/ProfileTypes", data=b"", headers={"Content-Type": "application/proto"}
        )
        assert (connect.status, (await connect.json())["code"]) == (401, "unauthenticated")


async def test_the_page_is_small_strict_and_asks_nobody_else(store: Store, fake_clock: FakeClock) -> None:
    """Under 300 KB in all, scripts only from here, no address of another site in any of its files."""
    total = 0
    async with client_of(store, fake_clock) as client:
        index = await client.get("/")
        policy = index.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert index.headers["X-Content-Type-Options"] == "nosniff"
        from importlib.resources import files  # noqa: PLC0415 - what the wheel holds

        for each in (files("sentinel_agent.api") / "web").iterdir():
            response = await client.get(f"/assets/{each.name}")
            content = await response.read()
            total += len(content)
            assert response.status == 200
            text = content.replace(b"http://www.w3.org/2000/svg", b"")
            assert b"http://" not in text
            assert b"https://" not in text
            assert b"innerHTML" not in text
        assert (await client.get("/assets/..%2F__init__.py")).status == 404
    assert total < 300_000


async def test_wrong_methods_and_hosts(store: Store, fake_clock: FakeClock) -> None:
    """In the same form of error as everything else."""
    async with client_of(store, fake_clock) as client:
        response = await client.put("/api/v1/incidents")
        assert (response.status, (await response.json())["error"]["code"]) == (405, "method_not_allowed")
        rebound = await client.get("/api/v1/incidents", headers={"Host": "evil.example"})
        assert (rebound.status, (await rebound.json())["error"]["code"]) == (421, "wrong_host")


async def test_a_fault_of_ours_is_told_without_its_insides(
    store: Store, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """500 in words; what happened is in the log."""

    def broken(_: str | None) -> tuple[str, bytes]:
        raise RuntimeError("secret insides")

    async with client_of(store, fake_clock, metrics=broken) as client:
        response = await client.get("/metrics")
        assert response.status == 500
        assert "secret" not in await response.text()
    assert "internal fault while answering /metrics" in caplog.text
