"""Filters: ours, strangers', and those that only observe. Upstreams and the servers that filters ask are real."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import pytest

from sentinel_agent.errors import ConfigError
from sentinel_agent.profile.names import route_of
from sentinel_agent.proxy.filters import Hooks, Reply, Request, Response
from sentinel_agent.proxy.filters.loading import installed
from tests.proxy.support import (
    GET,
    OK,
    answering,
    bound,
    install,
    parse_text,
    proxy,
    read_head,
    status_of,
    upstream,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from tests.proxy.support import Proxy

POST = b"POST /p HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"


def events(running: Proxy) -> dict[str, int]:
    """What the filters of the only route counted."""
    return running.worker.http[0].routes[0].stats.events


async def until(running: Proxy, event: str, count: int = 1) -> None:
    """Until a filter has counted something."""
    async with asyncio.timeout(20):
        while events(running).get(event, 0) < count:
            await asyncio.sleep(0.01)


def dead_port() -> int:
    """A port on which nobody listens."""
    with bound() as sock:
        return int(sock.getsockname()[1])


# -- fault -------------------------------------------------------------------------------------------------------


async def test_a_share_of_the_requests_gets_a_fault(tmp_path: Path) -> None:
    """Aborts: within four standard deviations of the share; the log names the filter, the counter has every one."""
    use = "filters: [{name: fault, config: {seed: 7, abort: {status: 503, percent: 30}}}]"
    async with upstream(answering(OK)) as port, proxy(tmp_path, port, route=use) as running:
        async with running.connection() as (reader, writer):
            statuses = []
            for _ in range(400):
                writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                head = await read_head(reader)
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length is not None
                await reader.readexactly(int(length[1]))
                statuses.append(status_of(head))
        lines = await running.log(400)
    aborted = statuses.count(503)
    assert abs(aborted - 120) < 4 * (400 * 0.3 * 0.7) ** 0.5
    assert statuses.count(200) == 400 - aborted
    assert events(running) == {"fault.aborted": aborted, "fault.answered": aborted}
    assert {(line["flags"], line["detail"]) for line in lines if line["status"] == 503} == {
        ("FI", "filter fault")
    }


async def test_a_fault_is_for_requests_whose_headers_fit(tmp_path: Path) -> None:
    """Others go on; a delay delays and lets pass."""
    use = (
        "filters: [{name: fault, config: {delay: {fixed: 300ms}, headers: [{name: x-chaos, exact: 'yes'}]}}]"
    )
    async with upstream(answering(OK)) as port, proxy(tmp_path, port, route=use) as running:
        assert status_of(await running.ask(GET)) == 200
        assert events(running) == {}
        assert status_of(await running.ask(GET[:-2] + b"X-Chaos: yes\r\n\r\n")) == 200
        slow, fast = sorted((line["seconds"] for line in await running.log(2)), reverse=True)
    assert slow >= 0.3 > fast
    assert events(running) == {"fault.delayed": 1}


async def test_a_filter_that_takes_too_long_is_named(tmp_path: Path) -> None:
    """The route's timeout holds while a filter waits; the log does not blame the upstream."""
    use = "timeout: 200ms, filters: [{name: fault, config: {delay: {fixed: 1h}}}]"
    async with upstream(answering(OK)) as port, proxy(tmp_path, port, route=use) as running:
        assert status_of(await running.ask(GET)) == 504
        line = (await running.log())[0]
    assert line["detail"] == "a filter did not decide in time"
    assert line["upstream"] == ""


async def test_delays_are_bounded_and_end_with_their_client(tmp_path: Path) -> None:
    """One too many is not delayed; a client that leaves takes its task with it."""
    use = "filters: [{name: fault, config: {delay: {fixed: 1h}, max_active: 1}}]"
    async with upstream(answering(OK)) as port, proxy(tmp_path, port, route=use) as running:
        async with running.connection() as (_, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            await until(running, "fault.delayed")
            assert status_of(await running.ask(GET)) == 200
            assert events(running)["fault.skipped"] == 1
            names = [task.get_name() for task in asyncio.all_tasks()]
            assert any(re.fullmatch(r"GET / route=all trace=[0-9a-f]{32}", name) for name in names)
        await running.idle()
        await asyncio.sleep(0)
        assert not any("route=all" in task.get_name() for task in asyncio.all_tasks())


# -- mirror ------------------------------------------------------------------------------------------------------


async def test_a_mirror_gets_the_whole_request(tmp_path: Path) -> None:
    """Head, fixed and chunked body, as the upstream gets them; what it answers is seen by nobody."""
    copies: list[bytes] = []
    done = asyncio.Event()

    async def shadow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if b"chunked" in head:
                copies.append(head + await reader.readuntil(b"0\r\n\r\n"))
            else:
                length = re.search(rb"Content-Length: (\d+)", head)
                copies.append(head + (await reader.readexactly(int(length[1])) if length else b""))
            writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nbad")
            if len(copies) == 3:
                done.set()

    async def primary(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_head(reader)
        if b"chunked" in head:
            await reader.readuntil(b"0\r\n\r\n")
        elif b"Content-Length" in head:
            await reader.readexactly(5)
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))

    use = "filters: [{name: mirror, config: {cluster: shadow}}]"
    async with (
        upstream(primary) as port,
        upstream(shadow) as other,
        proxy(tmp_path, port, route=use, shadow=other) as running,
    ):
        assert status_of(await running.ask(GET)) == 200
        assert status_of(await running.ask(POST)) == 200
        async with running.connection() as (reader, writer):
            writer.write(b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await asyncio.sleep(0.05)
            writer.write(b"0\r\n\r\n")
            assert status_of(await read_head(reader)) == 200
        async with asyncio.timeout(20):
            await done.wait()
        await until(running, "mirror.sent", 3)
    assert sorted(copy.split(b" ")[1] for copy in copies) == [b"/", b"/c", b"/p"]
    assert {copy.split(b"\r\n\r\n", 1)[1] for copy in copies} == {b"", b"hello", b"3\r\nabc\r\n0\r\n\r\n"}
    assert all(b"X-Forwarded-For: 127.0.0.1\r\n" in copy and b"traceparent: " in copy for copy in copies)
    assert events(running) == {"mirror.sent": 3}


async def test_a_mirror_that_hangs_costs_the_primary_nothing(tmp_path: Path) -> None:
    """It takes connections and never answers: every request is answered, what is over the bound is dropped and counted."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    use = "filters: [{name: mirror, config: {cluster: shadow, max_pending: 3, max_body: 4, timeout: 1h}}]"
    async with (
        upstream(answering(OK)) as port,
        upstream(silent) as other,
        proxy(tmp_path, port, route=use, shadow=other) as running,
    ):
        assert status_of(await running.ask(POST)) == 200  # its body is larger than may be copied
        for _ in range(10):
            assert status_of(await running.ask(GET)) == 200
        assert events(running) == {"mirror.dropped": 8}
        assert running.worker.clusters["shadow"].active <= 3


async def test_a_dead_mirror_fails_alone(tmp_path: Path) -> None:
    """Nobody listens there: counted, and the next request may be copied again."""
    use = "filters: [{name: mirror, config: {cluster: shadow, max_pending: 1}}]"
    async with (
        upstream(answering(OK)) as port,
        proxy(tmp_path, port, route=use, shadow=dead_port()) as running,
    ):
        for count in (1, 2):
            assert status_of(await running.ask(GET)) == 200
            await until(running, "mirror.failed", count)


# -- external authorization --------------------------------------------------------------------------------------

AUTHZ = "filters: [{name: ext_authz, %s config: {cluster: auth, path_prefix: /check, upstream_headers: [x-user], %s}}]"


async def test_authorization_asks_and_obeys(tmp_path: Path) -> None:
    """It sees path and credentials; who it says the client is goes upstream, what a client says of itself does not.

    Its refusal is the client's answer, with the headers that it may have and no others.
    """
    asked: list[bytes] = []
    heads: list[bytes] = []

    async def authority(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked.append(await read_head(reader))
            if b"\r\nauthorization: good\r\n" in asked[-1]:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-User: ann\r\nX-Other: 1\r\n\r\n")
            else:
                writer.write(
                    b"HTTP/1.1 401 No\r\nContent-Length: 14\r\nContent-Type: text/html\r\n"
                    b"WWW-Authenticate: Basic\r\nX-Secret: 1\r\n\r\n<b>who are</b>"
                )

    async with (
        upstream(answering(OK, heads=heads)) as port,
        upstream(authority) as other,
        proxy(tmp_path, port, route=AUTHZ % ("", ""), auth=other) as running,
    ):
        pretends = GET[:-2] + b"X-User: root\r\nX-Private: 1\r\n"
        pretends = pretends.replace(
            b"GET / ", b"GET http://real.example/ "
        )  # whose host counts, not that of Host
        assert status_of(await running.ask(pretends + b"Authorization: good\r\n\r\n")) == 200
        refused = await running.ask(pretends + b"\r\n")
        line = (await running.log(2))[1]
    assert asked[0].startswith(
        b"GET /check/ HTTP/1.1\r\nHost: real.example\r\nX-Forwarded-For: 127.0.0.1\r\n"
    )
    assert b"private" not in asked[0].lower()
    assert b"x-user: ann\r\n" in heads[0]
    assert b"root" not in heads[0]
    assert b"other" not in heads[0].lower()
    assert status_of(refused) == 401
    assert b"www-authenticate: Basic\r\n" in refused
    assert b"content-type: text/html\r\n" in refused
    assert b"plain" not in refused
    assert b"secret" not in refused.lower()
    assert refused.endswith(b"<b>who are</b>")
    assert (line["flags"], line["detail"]) == ("FI", "filter ext_authz")
    assert len(heads) == 1


@pytest.mark.parametrize(
    ("allow", "status", "event"), [("true", 200, "ext_authz.failed_open"), ("false", 403, "ext_authz.failed")]
)
@pytest.mark.parametrize("fault", ["dead", "silent", "garbage", "half"])
async def test_authorization_without_an_answer(
    tmp_path: Path, fault: str, allow: str, status: int, event: str
) -> None:
    """Nobody there, silence, no HTTP, half an answer: `failure_mode_allow` decides, within the timeout.

    What a client says of itself goes no further even then.
    """
    heads: list[bytes] = []

    async def authority(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        if fault == "silent":
            await reader.read(-1)
        writer.write(
            {"garbage": b"nonsense\r\n\r\n"}.get(fault, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
        )

    use = AUTHZ % ("", f"timeout: 500ms, failure_mode_allow: {allow}")
    async with (
        upstream(answering(OK, heads=heads)) as port,
        upstream(authority) as other,
        proxy(tmp_path, port, route=use, auth=dead_port() if fault == "dead" else other) as running,
    ):
        assert status_of(await running.ask(GET[:-2] + b"X-User: root\r\n\r\n")) == status
        assert events(running)[event] == 1
        assert running.worker.clusters["auth"].active == 0
        assert all(server.active == 0 for server in running.worker.clusters["auth"].servers)
    assert len(heads) == (status == 200)
    assert not any(b"root" in head for head in heads)


async def test_authorization_survives_a_connection_that_was_closing(tmp_path: Path) -> None:
    """The server ends idle connections: the next question goes over another one."""
    left = []

    async def authority(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await read_head(reader)  # the second question finds it closing
        left.append(1)

    async with (
        upstream(answering(OK)) as port,
        upstream(authority) as other,
        proxy(tmp_path, port, route=AUTHZ % ("", ""), auth=other) as running,
    ):
        assert [status_of(await running.ask(each)) for each in (GET, GET, POST, POST)] == [200] * 4
    assert left


# -- observing ---------------------------------------------------------------------------------------------------


async def test_a_filter_that_observes_changes_nothing(tmp_path: Path) -> None:
    """Its refusal is counted and in the log, its edits are not made, and nobody waits for it."""
    heads: list[bytes] = []
    released = asyncio.Event()

    async def authority(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        await released.wait()
        writer.write(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    use = AUTHZ % ("mode: observe,", "timeout: 20s")
    async with (
        upstream(answering(OK, heads=heads)) as port,
        upstream(authority) as other,
        proxy(tmp_path, port, route=use, auth=other) as running,
    ):
        assert status_of(await running.ask(GET[:-2] + b"X-User: root\r\n\r\n")) == 200
        released.set()
        await until(running, "ext_authz.observed")
    assert b"X-User: root\r\n" in heads[0]


async def test_what_would_have_been_answered_is_in_the_log(tmp_path: Path) -> None:
    """With the filter and the status, and without a flag, since nothing happened."""
    use = "filters: [{name: fault, mode: observe, config: {abort: {status: 503}}}]"
    async with upstream(answering(OK)) as port, proxy(tmp_path, port, route=use) as running:
        assert status_of(await running.ask(GET)) == 200
        line = (await running.log())[0]
    assert line["detail"] == "filter fault would answer 503"
    assert "flags" not in line
    assert events(running) == {"fault.aborted": 1, "fault.observed": 1}


async def test_a_fault_of_an_observing_filter_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request passes, whether it raises at once or later."""

    def now(_: Request) -> Reply | None:
        raise RuntimeError("at once")

    async def later(_: Request) -> Reply | None:
        await asyncio.sleep(0)
        raise RuntimeError("later")

    install(monkeypatch, now=Hooks(request=now), later=Hooks(request=later))
    use = "filters: [{name: now, mode: observe}, {name: later, mode: observe}]"
    async with upstream(answering(OK)) as port, proxy(tmp_path, port, route=use) as running:
        assert status_of(await running.ask(GET)) == 200
        await until(running, "later.observe_failed")
        assert events(running)["now.observe_failed"] == 1


# -- strangers' --------------------------------------------------------------------------------------------------

GATE = """
import msgspec
from sentinel_agent.proxy.filters import Hooks, Reply

class GateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    word: str
    cluster: str = "back"

class Gate:
    Options = GateOptions
    def __init__(self, options):
        self.hooks = Hooks(request=self.look, response=self.mark, clusters=(options.cluster,))
        self.options = options
    def look(self, request):
        return None if request.header("x-word") == self.options.word.encode() else Reply(418, b"what?")
    def mark(self, request, response):
        response.set_header("X-Gate", request.route)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with a filter, as a package manager would leave it."""
    site = tmp_path / "site"
    info = site / "gate-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "gate_filter.py").write_text(GATE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gate\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sentinel_agent.proxy_filters]\ngate = gate_filter:Gate\nbroken = gate_filter:Missing\n"
    )
    monkeypatch.syspath_prepend(str(site))
    installed.cache_clear()
    yield
    installed.cache_clear()
    sys.modules.pop("gate_filter", None)


@pytest.mark.usefixtures("package")
async def test_a_strangers_filter_comes_in_by_entry_point(tmp_path: Path) -> None:
    """It gets its options, sees requests and responses, and answers."""
    use = "filters: [{name: gate, config: {word: open}}]"
    async with upstream(answering(OK)) as port, proxy(tmp_path, port, route=use) as running:
        assert status_of(await running.ask(GET)) == 418
        passed = await running.ask(GET[:-2] + b"X-Word: open\r\n\r\n")
    assert status_of(passed) == 200
    assert b"X-Gate: all\r\n" in passed


@pytest.mark.usefixtures("package")
def test_a_filter_that_cannot_be_used_is_a_fault_of_the_file() -> None:
    """Unknown, broken, options that are missing, unknown or of another type, options that do not go together, clusters."""
    uses = {
        "{name: gat}": ("name", "there is no filter 'gat': did you mean `gate`?"),
        "{name: broken}": ("name", "the filter 'broken' cannot be loaded: AttributeError"),
        "{name: gate}": ("config.word", "missing"),
        "{name: gate, config: {word: w, wrod: 1}}": ("config.wrod", "unknown key: did you mean `word`?"),
        "{name: gate, config: {word: w, cluster: nowhere}}": ("config", "there is no cluster 'nowhere'"),
        "{name: fault, config: {delay: {fixed: never}}}": ("config.delay.fixed", "expected a duration"),
        "{name: fault}": ("config", "expected delay, abort or both"),
        "{name: ext_authz, config: {cluster: back, upstream_headers: [host]}}": ("config", "host frames"),
    }
    text = "listeners:\n- name: web\n  address: 127.0.0.1:80\n  routes:\n"
    text += "".join(f"  - {{name: r{n}, cluster: back, filters: [{use}]}}\n" for n, use in enumerate(uses))
    text += 'clusters: [{name: back, endpoints: [{address: "127.0.0.1:81"}]}]\n'
    with pytest.raises(ConfigError) as caught:
        parse_text(text)
    found = {fault.path: fault for fault in caught.value.faults}
    for number, (place, words) in enumerate(uses.values()):
        fault = found.pop(f"listeners[0].routes[{number}].filters[0].{place}")
        assert fault.message.startswith(words)
        assert fault.where.startswith("test.yaml:")
    assert not found


async def test_a_filter_cannot_break_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that would split the answer, or an answer that is none: a 500 of this request."""

    def look(request: Request) -> Reply | None:
        if request.target == b"/split":
            return Reply(200, headers=(("X-A", "1\r\nX-B: 2"),))
        if request.target == b"/type":
            return "no reply"  # type: ignore[return-value]  # what a stranger may do
        request.remove_header("X-Gone")
        return None

    heads: list[bytes] = []
    install(monkeypatch, look=Hooks(request=look))
    async with (
        upstream(answering(OK, heads=heads)) as port,
        proxy(tmp_path, port, route="filters: [{name: look}]") as running,
    ):
        for path in (b"/split", b"/type"):
            answer = await running.ask(GET.replace(b"/ ", path + b" ", 1))
            assert status_of(answer) == 500
            assert b"X-B" not in answer
        assert status_of(await running.ask(GET[:-2] + b"x-gone: 1\r\n\r\n")) == 200
    assert b"x-gone" not in heads[0]


# -- whose code runs ---------------------------------------------------------------------------------------------


async def test_the_stack_of_a_filter_names_its_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and after a wait, on the way in and back, in an encoder: a frame `route all` is below each of them."""
    stacks: dict[str, list[tuple[str, str]]] = {}

    def note(what: str) -> None:
        frame: FrameType | None = sys._getframe()
        found = stacks[what] = []
        while frame is not None:
            found.append((frame.f_code.co_name, frame.f_code.co_filename))
            frame = frame.f_back

    class Noting:
        def feed(self, data: bytes) -> bytes:
            note("feed")
            return data

        def end(self) -> bytes:
            return b""

        def drop(self) -> None:
            """Nothing is kept."""

    async def late(_: Request) -> Reply | None:
        await asyncio.sleep(0)
        note("late")
        return None

    def back(_: Request, response: Response) -> None:
        note("back")
        response.encode(Noting())

    async def watch(_: Request) -> Reply | None:
        await asyncio.sleep(0)
        note("observing")
        return None

    hooks = {
        "early": Hooks(request=lambda _: note("early")),
        "watch": Hooks(request=watch),
        "late": Hooks(request=late, response=back),
        "after": Hooks(request=lambda _: note("after")),
    }
    install(monkeypatch, **hooks)
    use = "filters: [{name: early}, {name: watch, mode: observe}, {name: late}, {name: after}]"
    async with upstream(answering(OK)) as port, proxy(tmp_path, port, route=use) as running:
        assert status_of(await running.ask(GET)) == 200
        async with asyncio.timeout(20):
            while len(stacks) < 6:
                await asyncio.sleep(0.01)
    for what, stack in stacks.items():
        assert "all" in [route_of(name, file) for name, file in stack], what
