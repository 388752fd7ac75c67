"""The embedded proxy while it changes: reload, warm upgrade, deaths, under load of wrk; failures are counted, not believed away."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import trustme

from tests.e2e.support import SENTINEL, free_port, get, listening, sentinel, started, until
from tests.needs import program

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e
CONNECTIONS = 16
UPSTREAM = """
import asyncio, sys
class Answer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok" * data.count(b"\\r\\n\\r\\n"))
async def main():
    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", int(sys.argv[1]), backlog=1000)
    await server.serve_forever()
asyncio.run(main())
"""


class Place:
    """A folder with a configuration, and what runs there."""

    def __init__(self, folder: Path, back: int) -> None:
        self.folder = folder
        self.back = back
        self.port = free_port()
        self.file = folder / "proxy.yaml"
        self.temporary = Path(tempfile.mkdtemp(prefix="p-"))
        self.url = f"http://127.0.0.1:{self.port}"

    def write(self, word: str, *, more: str = "", tls: str = "") -> None:
        """A configuration whose route /word answers with a word; all else goes to the upstream."""
        text = f"""
listeners:
  - name: web
    address: 127.0.0.1:{self.port}
    {tls}
    routes:
      - {{name: word, match: {{exact: /word}}, response: {{status: 200, body: {word}}}}}
      - {{name: rest, cluster: back, request_headers: {{set: {{x-word: {word}}}}}}}
{more}
clusters:
  - {{name: back, endpoints: [{{address: "127.0.0.1:{self.back}"}}]}}
workers: 2
drain: 2s
"""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.file)

    def word(self) -> str:
        """What /word answers."""
        return get(f"{self.url}/word").decode()

    @contextmanager
    def run(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """`sentinel-agent proxy` of this place."""
        environment = os.environ | {"TMPDIR": str(self.temporary)}  # what is killed leaves something there
        command = (*SENTINEL, "proxy", "--config", str(self.file), "--data-dir", str(self.folder / "data"))
        with (
            (self.folder / "said").open("a") as said,
            started(
                (*command, "--no-agent", *options), stderr=said, stdout=subprocess.DEVNULL, env=environment
            ) as process,
        ):
            yield process

    def serves(self) -> bool:
        """Whether it has come up whole: workers, signals, and the door for a successor."""
        return listening(self.port) and any((self.folder / "data").glob("proxy-*.sock"))

    def said(self) -> str:
        """What the supervisors said."""
        return (self.folder / "said").read_text()

    def load(self, seconds: int, *words: str) -> subprocess.Popen[str]:
        """wrk, for some seconds."""
        command = (program("wrk"), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", *words)
        return subprocess.Popen((*command, f"{self.url}/x"), stdout=subprocess.PIPE, text=True)


def failures(load: subprocess.Popen[str]) -> tuple[int, int]:
    """Requests that wrk made, and those that failed."""
    out, _ = load.communicate(timeout=60)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    made = re.search(r"(\d+) requests in", out)
    assert made is not None, out
    failed = sum(map(int, errors.groups())) if errors else 0
    return int(made[1]), failed + (int(wrong[1]) if wrong else 0)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """With an upstream."""
    back = free_port()
    with started((sys.executable, "-c", UPSTREAM, str(back))):
        until(lambda: listening(back), 30, "the upstream")
        found = Place(tmp_path, back)
        found.write("first")
        yield found
        shutil.rmtree(found.temporary)


CLOSE = ("-H", "Connection: close")


def test_reload_under_load(place: Place) -> None:
    """Connections kept and one for each request: none fails while routes, listeners and their number change, and faults are refused."""
    with place.run() as process:
        until(place.serves, 30, "the proxy")
        loads = [place.load(4), place.load(4, *CLOSE)]
        place.write("second")
        process.send_signal(signal.SIGHUP)
        until(lambda: place.word() == "second", 20, "the second configuration")
        more = free_port()
        place.write(
            "third",
            more=f"  - {{name: more, address: '127.0.0.1:{more}', protocol: tcp, cluster: back}}",
        )
        process.send_signal(signal.SIGHUP)
        until(lambda: listening(more), 20, "a new listener")
        place.file.write_text(place.file.read_text() + "nonsense: [")
        process.send_signal(signal.SIGHUP)
        until(lambda: "stays as it was" in place.said(), 20, "a refusal")
        assert place.word() == "third"
        place.write("fourth")
        process.send_signal(signal.SIGHUP)
        until(lambda: not listening(more), 20, "the end of a listener")
        results = [failures(load) for load in loads]
    assert [failed for _, failed in results] == [0, 0], place.said()
    assert all(made > 100 for made, _ in results)


def test_faults_of_a_change_are_refused(place: Place, tmp_path: Path) -> None:
    """A port in use, a certificate without its key, an unknown cluster, no file at all: the old one stays; a signal reads it anew."""
    taken = free_port()
    pair = trustme.CA().issue_cert("a.example")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    trustme.CA().issue_cert("a.example").private_key_pem.write_to_path(tmp_path / "key.pem")
    with place.run() as process, started((sys.executable, "-c", UPSTREAM, str(taken))):
        until(lambda: place.serves() and listening(taken), 30, "the proxy")
        more = f"  - {{name: more, address: '127.0.0.1:{taken}', protocol: tcp, cluster: back}}"
        tls = f"tls: {{certificates: [{{cert: {tmp_path}/cert.pem, key: {tmp_path}/key.pem}}]}}"

        def refused(words: str) -> None:
            process.send_signal(signal.SIGHUP)
            until(lambda: words in place.said(), 20, words)
            assert place.word() == "first"

        place.write("second", more=more)
        refused("Address already in use")
        place.write("second", tls=tls)
        refused("is not the key of")
        place.write("second", more=more.replace("back", "nobody"))
        refused("there is no cluster 'nobody'")
        shown = sentinel("proxy", "status", "--data-dir", str(place.folder / "data")).stdout
        assert "its last change was refused, the one before is in force: " in shown
        assert "there is no cluster 'nobody'" in shown
        place.file.unlink()
        refused("No such file")
        pair.private_key_pem.write_to_path(tmp_path / "key.pem")
        place.write("last", tls=tls.replace("}]", "}], allow_plaintext: true"))
        until(lambda: place.word() == "last", 20, "the last configuration")


def test_upgrade_under_load(place: Place) -> None:
    """A new supervisor takes over and no request fails; the old one's workers are gone soon, it resumes if the new one dies."""
    with place.run() as old:
        until(place.serves, 30, "the proxy")
        loads = [place.load(5), place.load(5, *CLOSE)]
        before = {each.pid for each in _workers(old)}
        place.write("second")
        with place.run("--upgrade") as new:
            until(lambda: not before & {each.pid for each in _workers(old)}, 30, "the end of the old workers")
            assert len(_workers(new)) == 2
            until(lambda: place.word() == "second", 20, "the changed file, once it had taken over")
            results = [failures(load) for load in loads]
            assert old.poll() is None
            new.kill()
            new.wait()
            until(lambda: len(_workers(old)) == 2, 30, "the old one's new workers")
        until(lambda: place.word() == "second", 20, "service by the old one")
    assert [failed for _, failed in results] == [0, 0], place.said()
    assert all(made > 100 for made, _ in results)


def test_a_successor_that_cannot_serve(place: Place) -> None:
    """Ends with a reason, and the old one goes on; so it does where nobody is to be succeeded."""
    with place.run("--upgrade") as lonely:
        assert lonely.wait(30) == 2
    assert "no proxy of this configuration runs" in place.said()
    with place.run() as old:
        until(place.serves, 30, "the proxy")
        with place.run() as second:
            assert second.wait(30) == 2
        assert "Address already in use" in place.said()
        assert "--upgrade" in place.said()
        with place.run("--upgrade", "--workers", "40") as new:  # it has no time to start so many
            until(lambda: "another supervisor takes over" in place.said(), 30, "the hand-over")
            new.kill()
        until(lambda: "did not take over" in place.said(), 30, "the old one's word")
        assert place.word() == "first"
        assert len(_workers(old)) == 2


def test_a_worker_that_is_killed(place: Place) -> None:
    """kill -9 under load: no more requests fail than were under way there, and its successor serves."""
    with place.run() as process:
        until(place.serves, 30, "the proxy")
        loads = [place.load(3), place.load(3, *CLOSE)]
        time.sleep(1)
        victim = _workers(process)[0]
        victim.kill()
        until(lambda: len([each for each in _workers(process) if each != victim]) == 2, 30, "another worker")
        results = [failures(load) for load in loads]
        assert place.word() == "first"
    assert all(failed <= CONNECTIONS for _, failed in results), results
    assert all(made > 100 for made, _ in results)


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children():
        try:
            if child.status() != psutil.STATUS_ZOMBIE and "proxy.process" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found
