"""Grafana's calls over HTTP: what they answer of sealed incidents and of the live recorder."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sentinel_agent.api import messages
from sentinel_agent.api.pyroscope import METHODS, SERVICE
from sentinel_agent.api.querier import TYPES, profile_id
from sentinel_agent.profile import pprof
from sentinel_agent.profile.record import MAX_NAME, RecordBuilder
from tests.api.support import (
    CPU,
    DUMPS,
    TASKS,
    THREADS,
    WALL,
    MadeUpAgent,
    client_of,
    files_of,
    hostile_recording,
    recording,
    save_spike,
)
from tests.store.helpers import START, save

if TYPE_CHECKING:
    from sentinel_agent.store.store import Store
    from sentinel_agent.testing import FakeClock

NANO = 1_000_000_000


async def ask(client: Any, method: str, **request: Any) -> Any:
    """One call in JSON, as Drilldown makes them."""
    response = await client.post(
        SERVICE + method, data=msgspec.json.encode(request), headers={"Content-Type": "application/json"}
    )
    assert response.status == 200, await response.text()
    return await response.json()


async def total(client: Any, kind: str, selector: str = "{}", **more: Any) -> float:
    """The width of a flame graph."""
    reply = await ask(client, "SelectMergeStacktraces", profileTypeID=kind, labelSelector=selector, **more)
    return int(reply.get("flamegraph", {"total": "0"})["total"]) / NANO


def between(since: float, until: float) -> dict[str, Any]:
    return {"start": round(since * 1000), "end": round(until * 1000)}


async def test_every_call_answers_in_both_encodings(store: Store, fake_clock: FakeClock) -> None:
    """With the request's own content type to the letter, an empty request being one of defaults."""
    save_spike(store)
    types = {"profile_typeID": CPU}
    requests: dict[str, dict[str, Any]] = {
        "SelectSeries": types,
        "SelectMergeStacktraces": types,
        "SelectMergeSpanProfile": types,
        "SelectMergeProfile": types,
        "Diff": {"left": types, "right": types},
    }
    async with client_of(store, fake_clock, live=MadeUpAgent()) as client:
        for name, method in METHODS.items():
            replies = []
            for json, content_type in ((True, "application/json"), (False, "application/proto")):
                body = messages.encode(method.request, requests.get(name, {}), json=json)
                response = await client.post(
                    SERVICE + name, data=body, headers={"Content-Type": content_type}
                )
                assert (response.status, response.headers["Content-Type"]) == (200, content_type), name
                replies.append(messages.decode(method.reply, await response.read(), json=json))
            assert replies[0] == replies[1], name


async def test_a_chunked_and_a_zipped_request_and_a_zipped_reply(store: Store, fake_clock: FakeClock) -> None:
    """What older and other clients send."""

    async def chunks() -> Any:
        yield b'{"profileTypeID":"'
        yield f'{CPU}"}}'.encode()

    save_spike(store)
    json = {"Content-Type": "application/json"}
    async with client_of(store, fake_clock) as client:
        chunked = await client.post(f"{SERVICE}SelectMergeStacktraces", data=chunks(), headers=json)
        assert chunked.request_info.headers.get("Transfer-Encoding") == "chunked"
        zipped = await client.post(
            f"{SERVICE}SelectMergeStacktraces",
            data=gzip.compress(msgspec.json.encode({"profileTypeID": CPU})),
            headers=json | {"Content-Encoding": "gzip"},
        )
        assert await chunked.json() == await zipped.json() != {}
        small = await client.post(
            f"{SERVICE}GetProfileStats", data=b"", headers=json | {"Accept-Encoding": "gzip"}
        )
        assert "Content-Encoding" not in small.headers
        for number in range(20):
            save(store, START + number, files={})
        large = await client.post(
            f"{SERVICE}SelectSeries",
            data=msgspec.json.encode({"profileTypeID": DUMPS, "groupBy": ["dump_id", "summary"]}),
            headers=json | {"Accept-Encoding": "gzip, br"},
        )
        assert large.headers["Content-Encoding"] == "gzip"
        assert len((await large.json())["series"]) == 21


@pytest.mark.parametrize(
    ("method", "body", "status", "code"),
    [
        ("Nope", b"{}", 501, "unimplemented"),
        ("SelectSeries", b"{", 400, "invalid_argument"),
        ("SelectSeries", b'{"profileTypeID":"nope"}', 400, "invalid_argument"),
        (
            "SelectMergeStacktraces",
            b'{"profileTypeID":"%s","labelSelector":"{a=~\\"(\\"}"}' % CPU.encode(),
            400,
            "invalid_argument",
        ),
        (
            "SelectMergeStacktraces",
            b'{"profileTypeID":"%s","format":"PROFILE_FORMAT_DOT"}' % CPU.encode(),
            501,
            "unimplemented",
        ),
        ("SelectMergeStacktraces", b'{"format":"PROFILE_FORMAT_SANDWICH"}', 501, "unimplemented"),
    ],
)
async def test_errors_are_connects(
    store: Store, fake_clock: FakeClock, method: str, body: bytes, status: int, code: str
) -> None:
    """Status, JSON and code as the protocol has them, so that Grafana shows the message."""
    async with client_of(store, fake_clock) as client:
        response = await client.post(
            SERVICE + method, data=body, headers={"Content-Type": "application/json"}
        )
        assert (response.status, response.content_type, (await response.json())["code"]) == (
            status,
            "application/json",
            code,
        )
        other = await client.post(
            SERVICE + method, data=body, headers={"Content-Type": "application/x-protobuf"}
        )
        assert other.status == 415


async def test_the_spike_before_and_during(store: Store, fake_clock: FakeClock) -> None:
    """The phase is a label, so that the two can be compared; a slice of time is a flame graph of its own."""
    saved = save_spike(store)
    async with client_of(store, fake_clock) as client:
        dump = f'dump_id="{saved}"'
        assert await total(client, CPU, f"{{{dump}}}") == 5 + 15 * 0.25
        assert await total(client, CPU, f'{{{dump},phase="during"}}') == 5
        assert await total(client, CPU, f'{{{dump},phase!="during"}}') == 15 * 0.25
        assert await total(client, WALL, f"{{{dump}}}") == 20
        assert await total(client, CPU, f"{{{dump}}}", **between(START + 1, START + 3)) == 2
        assert await total(client, CPU, '{dump_id="other"}') == 0
        assert await total(client, CPU, profileIdSelector=[profile_id(saved)]) == 8.75
        assert await total(client, CPU, profileIdSelector=["00000000-0000-0000-0000-000000000000"]) == 0
        side = {"profileTypeID": CPU}
        graph = (
            await ask(
                client,
                "Diff",
                left=side | {"labelSelector": f'{{{dump},phase="before"}}'},
                right=side | {"labelSelector": f'{{{dump},phase="during"}}'},
            )
        )["flamegraph"]
        assert (int(graph["leftTicks"]) / NANO, int(graph["rightTicks"]) / NANO) == (3.75, 5)


async def test_a_route_of_the_proxy_is_a_label(store: Store, fake_clock: FakeClock) -> None:
    """Its stacks alone, by the frame that names it; the other labels count as ever."""
    made = RecordBuilder(start=START, period=1.0)
    frames = [made.frame(f"route {name}", "/x/sentinel_agent/proxy/routeframe.py", 9) for name in ("a", "b")]
    hot, thread = made.frame("hot", "shop.py", 1), made.thread(1, "MainThread")
    for at, stack in enumerate(([hot, frames[0]], [hot, frames[1]], [hot, frames[1]], [hot])):
        made.add(thread, stack, offset=float(at), weight=1.0, on_cpu=True)
    saved = save(store, files=files_of(made.build(), since=START))
    async with client_of(store, fake_clock) as client:
        assert await total(client, CPU) == 4
        assert await total(client, CPU, '{route="b"}') == 2
        assert await total(client, CPU, f'{{route=~"a|b",dump_id="{saved}"}}') == 3
        assert await total(client, CPU, '{route=""}') == 1
        assert await total(client, CPU, '{route="b",dump_id="other"}') == 0
        assert (await ask(client, "LabelValues", name="route"))["names"] == ["a", "b"]


async def test_no_moment_is_counted_twice(store: Store, fake_clock: FakeClock) -> None:
    """Incidents that hold the same minutes, and the recorder that still has them, add up to the time that passed."""
    save_spike(store, START)
    save_spike(store, START + 10)  # recorded from START - 5 to START + 15
    fake_clock.advance(30)
    async with client_of(store, fake_clock) as client:
        assert await total(client, WALL) == 30
        assert await total(client, WALL, **between(START, START + 10)) == 10
        assert await total(client, WALL, '{rule="cpu-spike"}') == 30
    agent = MadeUpAgent(record=recording(START + 5, 20))
    async with client_of(store, fake_clock, live=agent) as client:
        assert await total(client, WALL) == 40
        assert await total(client, WALL, '{source="recorder"}') == 20
        assert await total(client, WALL, '{source="incident"}') == 30


async def test_another_target_is_counted_for_itself(store: Store, fake_clock: FakeClock) -> None:
    """The same minutes of two roles are two times the time."""
    from sentinel_agent.core.model import Role, TargetId  # noqa: PLC0415 - only here
    from sentinel_agent.testing import make_target  # noqa: PLC0415 - only here

    save_spike(store)
    save_spike(store, target=make_target(TargetId(1, 2), Role("gateway", "host-b")))
    async with client_of(store, fake_clock) as client:
        assert await total(client, WALL) == 40
        assert await total(client, WALL, '{instance="host-b"}') == 20


async def test_the_list_of_incidents(store: Store, fake_clock: FakeClock) -> None:
    """One series for each dump with a point at its own time: rows of a table; the drop-down lists the newest first."""
    first, second = save_spike(store), save_spike(store, START + 60, rule="task-leak")
    async with client_of(store, fake_clock) as client:
        reply = await ask(
            client,
            "SelectSeries",
            profileTypeID=DUMPS,
            groupBy=["dump_id", "rule"],
            step=15,
            **between(START - 1, START + 100),
        )
        rows = {
            tuple(label["value"] for label in series["labels"]): series["points"]
            for series in reply["series"]
        }
        assert rows == {
            (first, "cpu-spike"): [{"value": 1, "timestamp": str(round(START * 1000))}],
            (second, "task-leak"): [{"value": 1, "timestamp": str(round(START * 1000) + 60_000)}],
        }
        names = await ask(client, "LabelValues", name="dump_id", matchers=[f'{{__profile_type__="{DUMPS}"}}'])
        assert names["names"] == [second, first]
        assert (await ask(client, "LabelValues", name="rule", matchers=['{rule=~"task.*"}']))["names"] == [
            "task-leak"
        ]
        assert (
            await ask(client, "LabelValues", name="dump_id", matchers=[""], **between(START + 30, START + 90))
        )["names"][0] == second


async def test_series_have_the_costs_of_each_step(store: Store, fake_clock: FakeClock) -> None:
    """A point stands for the step that ends there; all points together are the whole."""
    save_spike(store)
    async with client_of(store, fake_clock) as client:
        reply = await ask(
            client,
            "SelectSeries",
            profileTypeID=CPU,
            groupBy=["phase"],
            step=5,
            **between(START - 15, START + 15),
        )
        series = {each["labels"][0]["value"]: each["points"] for each in reply["series"]}
        assert sum(point["value"] for point in series["before"]) == 3.75 * NANO
        assert sum(point["value"] for point in series["during"]) == 5 * NANO
        assert max(int(point["timestamp"]) for point in series["during"]) == round(START * 1000) + 5000
        assert (
            len(
                (await ask(client, "SelectSeries", profileTypeID=DUMPS, groupBy=["dump_id"], limit=1))[
                    "series"
                ]
            )
            == 1
        )


async def test_tasks_and_threads(store: Store, fake_clock: FakeClock) -> None:
    """Counts: a group of tasks is as wide as it is large, along its await chain."""
    save_spike(store)
    async with client_of(store, fake_clock) as client:
        graph = (await ask(client, "SelectMergeStacktraces", profileTypeID=TASKS))["flamegraph"]
        assert (graph["total"], graph["names"][1:]) == (
            "40",
            ["main (app/gateway.py)", "checksum (app/rows.py)", "waiting on Future"],
        )
        graph = (await ask(client, "SelectMergeStacktraces", profileTypeID=THREADS))["flamegraph"]
        assert (graph["total"], graph["names"][1]) == ("1", "MainThread")


async def test_memory_by_traceback(store: Store, fake_clock: FakeClock) -> None:
    """What tracebacks hold and what they allocated meanwhile, bytes and blocks, under their file; one that shrank is not drawn."""
    held = {"held_bytes": 9000, "held_blocks": 5}
    sites = [
        {
            "bytes": 5000,
            "blocks": 3,
            **held,
            "lines": [{"file": "/srv/app/cache.py", "line": 7}, {"file": "/srv/app/main.py", "line": 2}],
        },
        {
            "bytes": -20,
            "blocks": -1,
            "held_bytes": 0,
            "held_blocks": 0,
            "lines": [{"file": "/srv/app/cache.py", "line": 9}],
        },
    ]
    save(store, files={"tracemalloc.json": msgspec.json.encode({"sites": sites})})
    figures = {"inuse_space": "9000", "inuse_objects": "5", "alloc_space": "5000", "alloc_objects": "3"}
    async with client_of(store, fake_clock) as client:
        for kind in (kind for kind in TYPES if kind.startswith("memory:")):
            graph = (await ask(client, "SelectMergeStacktraces", profileTypeID=kind))["flamegraph"]
            assert graph["total"] == figures.pop(kind.split(":")[1])
            assert graph["names"][1:] == ["app/main.py", "app/main.py:2", "app/cache.py:7"]
    assert not figures


async def test_labels_that_drilldown_needs(store: Store, fake_clock: FakeClock) -> None:
    """Services with their profile types, from incidents and from the live target; data are there from the first minute."""
    save(store, files={}, rule="bare")
    async with client_of(store, fake_clock, live=MadeUpAgent()) as client:
        reply = await ask(client, "Series", labelNames=["service_name", "__profile_type__"])
        found = {tuple(pair["value"] for pair in each["labels"]) for each in reply["labelsSet"]}
        assert found == {(CPU, "gateway"), (WALL, "gateway"), (DUMPS, "gateway")}
        assert "service_name" in (await ask(client, "LabelNames"))["names"]
        assert (await ask(client, "GetProfileStats"))["dataIngested"] is True
        assert {each["ID"] for each in (await ask(client, "ProfileTypes"))["profileTypes"]} == set(TYPES)
        answers: tuple[tuple[str, dict[str, Any]], ...] = (
            ("settings.v1.SettingsService/Get", {"settings": []}),
            ("capabilities.v1.FeatureFlagsService/GetFeatureFlags", {}),
        )
        for path, answer in answers:
            response = await client.post(f"/{path}", data=b"{}", headers={"Content-Type": "application/json"})
            assert await response.json() == answer


async def test_a_merged_pprof_and_the_older_render(store: Store, fake_clock: FakeClock) -> None:
    """The profile that Drilldown exports is a pprof; /pyroscope/render says the same in its own form."""
    saved = save_spike(store)
    async with client_of(store, fake_clock) as client:
        body = messages.encode(messages.MERGE_PROFILE, {"profile_typeID": CPU}, json=False)
        response = await client.post(
            f"{SERVICE}SelectMergeProfile", data=body, headers={"Content-Type": "application/proto"}
        )
        record = pprof.decode(await response.read())
        assert record.seconds == pytest.approx(8.75)
        query = {
            "query": f'{CPU}{{dump_id="{saved}"}}',
            "from": str(round((START - 60) * 1000)),
            "until": "now",
            "format": "json",
        }
        fake_clock.advance(60)
        document = await (await client.get("/pyroscope/render", params=query)).json()
        assert document["flamebearer"]["numTicks"] / NANO == 8.75
        assert (await client.get("/pyroscope/render", params=query | {"format": "dot"})).status == 501
        assert (await client.get("/pyroscope/render", params=query | {"from": "yesterday"})).status == 400


async def test_the_older_difference(store: Store, fake_clock: FakeClock) -> None:
    """/pyroscope/render-diff says what Diff says; two types cannot be compared."""
    saved = save_spike(store)
    fake_clock.advance(60)
    side = f'{CPU}{{dump_id="{saved}",phase="%s"}}'
    times = {
        f"{at}{end}": value for at in ("left", "right") for end, value in (("From", "0"), ("Until", "now"))
    }
    query = times | {"leftQuery": side % "before", "rightQuery": side % "during"}
    async with client_of(store, fake_clock) as client:
        document = await (await client.get("/pyroscope/render-diff", params=query)).json()
        assert (document["leftTicks"] / NANO, document["rightTicks"] / NANO) == (3.75, 5)
        assert document["metadata"]["format"] == "double"
        assert document["flamebearer"]["levels"][0] == [0, 3_750_000_000, 0, 0, 5_000_000_000, 0, 0]
        other = await client.get("/pyroscope/render-diff", params=query | {"leftQuery": WALL})
        assert (other.status, (await other.json())["code"]) == (400, "invalid_argument")
        assert (await client.get("/pyroscope/render-diff", params=query | {"leftFrom": "x"})).status == 400


async def test_few_nodes_and_a_call_site(store: Store, fake_clock: FakeClock) -> None:
    """What is left out is in `other`, and what was called from one place can be had by itself."""
    save_spike(store)
    async with client_of(store, fake_clock) as client:
        few = (await ask(client, "SelectMergeStacktraces", profileTypeID=CPU, maxNodes=2))["flamegraph"]
        assert "other" in few["names"]
        site = [
            {"name": "main (app/gateway.py)"},
            {"name": "handle (app/gateway.py)"},
            {"name": "checksum (app/rows.py)"},
        ]
        assert await total(client, CPU, stackTraceSelector={"callSite": site}) == 5


@pytest.mark.parametrize("kind", [CPU, WALL])
async def test_hostile_names_are_text_in_both_encodings(
    store: Store, fake_clock: FakeClock, kind: str
) -> None:
    """Scripts, 100 KB, NUL, marks that turn the direction, invalid UTF-8: valid text without controls, bounded, and in pprof."""
    save(
        store,
        files=files_of(hostile_recording(START), START),
        rule="\0<script>\ud800",
        summary="\u202e" + "x" * 10**5,
    )
    async with client_of(store, fake_clock) as client:
        graph = (await ask(client, "SelectMergeStacktraces", profileTypeID=kind))["flamegraph"]
        assert any(name.startswith("<script>alert(1)</script>") for name in graph["names"])
        for name in graph["names"]:
            assert name.isprintable(), name[:100]
            assert len(name) <= 6 * (2 * MAX_NAME + 3)
        for method, message in (
            ("SelectMergeStacktraces", messages.STACKTRACES),
            ("SelectMergeProfile", messages.MERGE_PROFILE),
        ):
            body = messages.encode(message, {"profile_typeID": kind}, json=False)
            response = await client.post(
                SERVICE + method, data=body, headers={"Content-Type": "application/proto"}
            )
            reply = messages.decode(METHODS[method].reply, await response.read(), json=False)
        assert set(reply["string_table"]) >= set(graph["names"][1:])
        names = await ask(client, "LabelValues", name="rule", matchers=["{}"])
        assert names["names"] == ["\0<script>\\ud800"]


async def test_damaged_files_hide_nothing_else(store: Store, fake_clock: FakeClock) -> None:
    """An incident whose timeline cannot be read is left out of a merge, the others are in it."""
    save_spike(store)
    save(store, START + 500, files={"stacks.speedscope.json": b"{", "tasks.json": b"\xff"})
    async with client_of(store, fake_clock) as client:
        assert await total(client, CPU) == 8.75
        assert (await ask(client, "SelectMergeStacktraces", profileTypeID=TASKS))["flamegraph"][
            "total"
        ] == "40"
