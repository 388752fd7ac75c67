"""TLS with clients and upstreams, on the event loop that workers run on; clients are curl and the standard library's ssl."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import websockets

from sentinel_agent.errors import ConfigError
from sentinel_agent.proxy.config import load_proxy
from sentinel_agent.proxy.tls import certificates_of, files_of
from tests.proxy.support import (
    GET,
    OK,
    PATIENCE,
    answering,
    parse_text,
    proxy,
    read_head,
    serving,
    status_of,
    upstream,
)
from tests.proxy.test_real_programs import curl, nginx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.proxy.support import Proxy

LONG_AGO: Any = {
    "not_before": datetime.datetime(2019, 1, 1, tzinfo=datetime.UTC),
    "not_after": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
}


ON_UVLOOP = True


@dataclass
class Authority:
    """Issues certificates into a folder."""

    folder: Path
    ca: trustme.CA

    @property
    def path(self) -> Path:
        """The authority's own certificate."""
        path = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(path)
        return path

    def issue(self, name: str, *names: str, uri: str | None = None, **dates: Any) -> str:
        """`{cert, key}` as YAML, of a new pair of files."""
        found = self.ca.issue_cert(*names, **dates)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(each.bytes() for each in found.cert_chain_pems))
        key.write_bytes(found.private_key_pem.bytes())
        return f"{{cert: {cert}, key: {key}}}"

    def trusting(self) -> ssl.SSLContext:
        """A client's context that trusts this authority."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="session")
def root() -> trustme.CA:
    """Made once: keys take time."""
    return trustme.CA()


@pytest.fixture
def authority(tmp_path: Path, root: trustme.CA) -> Authority:
    """An authority with a folder of this test."""
    return Authority(tmp_path, root)


@asynccontextmanager
async def secured(tmp_path: Path, port: int, tls: str) -> AsyncIterator[Proxy]:
    """A proxy whose listener has these keys of `tls`."""
    async with proxy(tmp_path, port, listener=f"tls: {{{tls}}}") as running:
        yield running


async def ask(running: Proxy, context: ssl.SSLContext, data: bytes = GET, name: str = "a.example") -> bytes:
    """All that comes back on a new TLS connection."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", running.port, ssl=context, server_hostname=name
    )
    try:
        async with asyncio.timeout(PATIENCE):
            writer.write(data)
            return await reader.read(-1)
    finally:
        writer.close()


async def subject_of(running: Proxy, context: ssl.SSLContext, name: str) -> list[str]:
    """The names of the certificate that a client gets who asks for `name`."""
    context.check_hostname = False
    _, writer = await asyncio.open_connection("127.0.0.1", running.port, ssl=context, server_hostname=name)
    found = writer.get_extra_info("peercert")["subjectAltName"]
    writer.close()
    return [value for _, value in found]


async def test_curl_over_tls(tmp_path: Path, authority: Authority) -> None:
    """TLS 1.2 and 1.3, ALPN, big bodies both ways, an answer that ends with the connection, two requests on one."""
    pair = authority.issue("web", "a.example")
    async with nginx(tmp_path) as port, secured(tmp_path, port, f"certificates: [{pair}]") as running:
        url = f"https://a.example:{running.port}"
        to = ("--cacert", str(authority.path), "--resolve", f"a.example:{running.port}:127.0.0.1")
        big = (tmp_path / "root" / "big").read_bytes()
        assert await curl(*to, f"{url}/big") == big
        assert await curl(*to, "--tls-max", "1.2", f"{url}/big") == big
        assert await curl(*to, "--http1.0", f"{url}/big") == big
        said = await curl(
            *to, "-w", "%{ssl_verify_result} %{http_version} %{num_connects} ", f"{url}/empty", f"{url}/empty"
        )
        assert said == b"0 1.1 1 0 1.1 0 "
        with pytest.raises(AssertionError, match="SSL"):
            await curl("--resolve", to[3], f"{url}/empty")
        assert (await running.log(6))[-1]["flags"] == "TLS"  # curl did not trust us, and said so


async def test_the_upstream_is_told_of_the_scheme(tmp_path: Path, authority: Authority) -> None:
    """X-Forwarded-Proto: https, and http for a plaintext client of the same port."""
    heads: list[bytes] = []
    pair = authority.issue("web", "a.example")
    async with (
        upstream(answering(OK, heads=heads)) as port,
        secured(tmp_path, port, f"certificates: [{pair}], allow_plaintext: true") as running,
    ):
        assert status_of(await ask(running, authority.trusting())) == 200
        assert status_of(await running.ask(GET)) == 200
    assert [b"X-Forwarded-Proto: https\r\n" in head for head in heads] == [True, False]


async def test_one_port_for_plaintext_and_tls(tmp_path: Path, authority: Authority) -> None:
    """Clients of both kinds at once, some of which say nothing at first: every request is answered."""
    pair = authority.issue("web", "a.example")
    context = authority.trusting()
    async with (
        upstream(answering(OK)) as port,
        secured(tmp_path, port, f"certificates: [{pair}], allow_plaintext: true") as running,
        running.connection() as (reader, writer),
    ):
        await asyncio.sleep(0.05)
        answers = await asyncio.gather(
            *(ask(running, context) for _ in range(20)), *(running.ask(GET) for _ in range(20))
        )
        assert {status_of(answer) for answer in answers} == {200}
        for byte in GET:  # its first byte alone decides, and is not lost
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert status_of(await reader.read(-1)) == 200
        assert running.worker.http[0].opening == 0


async def test_a_plaintext_request_to_a_tls_port(tmp_path: Path, authority: Authority) -> None:
    """Is refused, with a flag and OpenSSL's reason; one that says nothing in time too."""
    pair = authority.issue("web", "a.example")
    async with (
        upstream(answering(OK)) as port,
        secured(tmp_path, port, f"certificates: [{pair}], handshake_timeout: 300ms") as running,
    ):
        assert status_of(await running.ask(GET)) == 0
        assert status_of(await running.ask(b"")) == 0
        first, second = await running.log(2)
        assert (first["flags"], first["detail"]) == ("TLS", "http request")
        assert (second["flags"], second["detail"]) == ("DT", "the TLS handshake did not end in time")
        assert running.worker.http[0].faults == {"TLS": 1, "DT": 1}


async def test_the_name_that_is_asked_for_chooses_the_certificate(
    tmp_path: Path, authority: Authority
) -> None:
    """Exactly, by wildcard, whatever the case; the first one for a name that none has."""
    one, two = authority.issue("one", "a.example"), authority.issue("two", "*.b.example", "b.example")
    async with (
        upstream(answering(OK)) as port,
        secured(tmp_path, port, f"certificates: [{one}, {two}]") as running,
    ):
        for name, wanted in (
            ("a.example", "a.example"),
            ("x.B.example", "*.b.example"),
            ("b.example", "*.b.example"),
            ("y.x.b.example", "a.example"),
            ("c.example", "a.example"),
        ):
            assert wanted in await subject_of(running, authority.trusting(), name), name


async def test_old_versions_are_refused(tmp_path: Path, authority: Authority) -> None:
    """min_version TLSv1.3 ends the handshake of a client that speaks 1.2 at most."""
    pair = authority.issue("web", "a.example")
    context = authority.trusting()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with (
        upstream(answering(OK)) as port,
        secured(tmp_path, port, f"certificates: [{pair}], min_version: TLSv1.3") as running,
    ):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(running, context)
        assert (await running.log())[0]["detail"] == "unsupported protocol"


async def test_clients_show_certificates(tmp_path: Path, authority: Authority) -> None:
    """None, a stranger's, one of another name: no request of them is read; the right one is served."""
    pair = authority.issue("web", "a.example")
    strange = trustme.CA().issue_cert("friend.example")
    friend, other = authority.ca.issue_cert("friend.example"), authority.ca.issue_cert("other.example")
    keys = f"certificates: [{pair}], client_ca: {authority.path}, require_client_certificate: true, match_san: [{{prefix: friend.}}]"
    async with upstream(answering(OK)) as port, secured(tmp_path, port, keys) as running:
        for shown in (None, strange, other):
            context = authority.trusting()
            if shown is not None:
                shown.configure_cert(context)
            try:
                answer = await ask(running, context)
            except (OSError, ssl.SSLError):
                answer = b""
            assert answer == b""
        context = authority.trusting()
        friend.configure_cert(context)
        assert status_of(await ask(running, context)) == 200
        lines = await running.log(4)
        assert [line.get("flags", "") for line in lines] == ["TLS", "TLS", "TLS", ""]
        assert "did not return a certificate" in lines[0]["detail"]
        assert "verify failed" in lines[1]["detail"]
        assert lines[2]["detail"] == "no name of the certificate is let in: found other.example"


async def test_websockets_over_tls(tmp_path: Path, authority: Authority) -> None:
    """A change of protocol inside TLS, a megabyte, an orderly end."""

    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    pair = authority.issue("web", "a.example")
    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with secured(tmp_path, port, f"certificates: [{pair}]") as running:
            address = f"wss://a.example:{running.port}/"
            async with websockets.connect(
                address, host="127.0.0.1", ssl=authority.trusting(), max_size=None
            ) as client:
                for message in ("hello", "x" * (1 << 20)):
                    await client.send(message)
                    assert await client.recv() == message


async def test_bytes_over_tls(tmp_path: Path, authority: Authority) -> None:
    """A TCP listener ends TLS for an upstream that knows nothing of it, or begins it for one that wants it."""
    pair = authority.issue("web", "a.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.ca.issue_cert("back.example").configure_cert(context)

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data.upper())

    server = await asyncio.start_server(shout, "127.0.0.1", 0, ssl=context)
    back = server.sockets[0].getsockname()[1]
    text = f"""
listeners:
  - {{name: raw, address: "127.0.0.1:0", protocol: tcp, cluster: back, tls: {{certificates: [{pair}]}}}}
clusters:
  - {{name: back, endpoints: [{{address: "127.0.0.1:{back}"}}], tls: {{ca: {authority.path}, sni: back.example}}}}
"""
    async with serving(parse_text(text), tmp_path / "log") as running:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", running.port, ssl=authority.trusting(), server_hostname="a.example"
        )
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        writer.close()
    server.close()
    await server.wait_closed()


# -- upstreams -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def tls_upstream(
    authority: Authority, *names: str, answer: bytes = OK, client_ca: bool = False, **dates: Any
) -> AsyncIterator[tuple[int, list[Any]]]:
    """An upstream with a certificate; its port, and what clients asked for and showed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.ca.issue_cert(*names, **dates).configure_cert(context)
    seen: list[Any] = []
    context.sni_callback = lambda _connection, name, _context: seen.append(name)
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.ca.configure_trust(context)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if client_ca:
            seen.append(writer.get_extra_info("peercert")["subjectAltName"])
        with suppress(asyncio.IncompleteReadError):
            while await read_head(reader):
                writer.write(answer)
                await writer.drain()
                if b"Content-Length" not in answer:
                    if b"cut" in answer:
                        shutdown(writer)
                    break
        writer.close()

    server = await asyncio.start_server(script, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


def shutdown(writer: asyncio.StreamWriter) -> None:
    """End the TCP connection under a TLS one, as whoever sits on the line could."""
    sock = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()


async def test_an_upstream_is_who_it_should_be(tmp_path: Path, authority: Authority) -> None:
    """By the name asked for, by its address, by match_san, or not at all; else no request is sent, and the reason is said."""
    ca = f"ca: {authority.path}"
    async with tls_upstream(authority, "back.example", "127.0.0.1") as (port, seen):
        for keys, status, words in (
            (f"{ca}, sni: back.example", 200, ""),
            (ca, 200, ""),
            (f"{ca}, sni: other.example", 503, "Hostname mismatch"),
            (f"{ca}, sni: other.example, match_san: [{{suffix: .example}}]", 200, ""),
            (
                f"{ca}, match_san: [{{exact: front.example}}]",
                503,
                "no name of the certificate is let in: found back.example",
            ),
            ("verify: false", 200, ""),
            ("min_version: TLSv1.3", 503, "unable to get local issuer certificate"),
        ):
            (tmp_path / "access.log").unlink(missing_ok=True)
            async with proxy(tmp_path, port, cluster=f"tls: {{{keys}}}") as running:
                answer = await running.ask(GET)
                assert status_of(answer) == status, (keys, answer)
                (line,) = await running.log()
                assert words in line.get("detail", ""), line
                assert (line.get("flags") == "UF") == (status == 503)
        assert seen[0] == "back.example"


async def test_an_upstream_with_an_expired_certificate(tmp_path: Path, authority: Authority) -> None:
    """Gets no request."""
    keys = f"tls: {{ca: {authority.path}, sni: back.example}}"
    async with (
        tls_upstream(authority, "back.example", **LONG_AGO) as (port, _),
        proxy(tmp_path, port, cluster=keys) as running,
    ):
        assert status_of(await running.ask(GET)) == 503
        assert "certificate has expired" in (await running.log())[0]["detail"]


async def test_we_show_our_certificate(tmp_path: Path, authority: Authority) -> None:
    """An upstream that requires one sees its names; connections are used again."""
    mine = authority.issue("mine", "proxy.example")
    keys = f"tls: {{ca: {authority.path}, sni: back.example, certificate: {mine}}}"
    async with (
        tls_upstream(authority, "back.example", client_ca=True) as (port, seen),
        proxy(tmp_path, port, cluster=keys) as running,
    ):
        assert [status_of(await running.ask(GET)) for _ in range(3)] == [200] * 3
    assert seen == ["back.example", (("DNS", "proxy.example"),)]


@pytest.mark.parametrize("cut", [False, True])
async def test_an_answer_to_the_end_of_the_connection(
    tmp_path: Path, authority: Authority, cut: bool
) -> None:
    """Is whole only if TLS is closed in order: whoever cuts the line must not pass a part off as all of it."""
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + (b"cut off" if cut else b"whole")
    keys = f"tls: {{ca: {authority.path}, sni: back.example}}"
    async with (
        tls_upstream(authority, "back.example", answer=answer) as (port, _),
        proxy(tmp_path, port, cluster=keys) as running,
    ):
        answer = await running.ask(GET)
        (line,) = await running.log()
    assert line.get("flags", "") == ("UC" if cut else "")
    if cut:
        assert "close_notify" in line["detail"]
    else:
        assert answer.endswith(b"whole")


# -- files ---------------------------------------------------------------------------------------------------------------


def configuration(tls: str, cluster: str = "") -> str:
    """A listener with these keys of `tls`, in lines of its own."""
    return f"""
listeners:
  - name: web
    address: 127.0.0.1:0
    routes: [{{name: all, cluster: back}}]
    tls: {{{tls}}}
clusters:
  - {{name: back, endpoints: [{{address: "127.0.0.1:1"}}], {cluster}}}
"""


def test_bad_files_are_faults_of_the_configuration(tmp_path: Path, authority: Authority) -> None:
    """Missing, a directory, no PEM, another's key, an encrypted key, no authority: all at once, each with its place and words."""
    good = authority.issue("good", "a.example")
    authority.issue("other", "b.example")
    (tmp_path / "text.pem").write_text("hello")
    locked = tmp_path / "locked.key"
    locked.write_bytes(_encrypted((tmp_path / "good.key").read_bytes()))
    tls = ", ".join(
        f"{{cert: {tmp_path}/{cert}, key: {tmp_path}/{key}}}"
        for cert, key in (
            ("none.pem", "good.key"),
            ("good.pem", "other.key"),
            ("text.pem", "good.key"),
            ("good.pem", "locked.key"),
            ("good.pem", "text.pem"),
        )
    )
    cluster = f"tls: {{ca: {tmp_path}/text.pem, certificate: {{cert: {tmp_path}, key: {tmp_path}/good.key}}}}"
    path = tmp_path / "proxy.yaml"
    path.write_text(configuration(f"certificates: [{good}, {tls}], client_ca: {tmp_path}/none.pem", cluster))
    with pytest.raises(ConfigError) as caught:
        load_proxy(path)
    found = {fault.path: fault.message for fault in caught.value.faults}
    place = "listeners[0].tls.certificates"
    assert set(found) == {
        *(f"{place}[{number}]" for number in range(1, 6)),
        "listeners[0].tls.client_ca",
        "clusters[0].tls.ca",
        "clusters[0].tls.certificate",
    }
    assert "No such file" in found[f"{place}[1]"]
    assert "is not the key of" in found[f"{place}[2]"]
    assert "expected a certificate in PEM" in found[f"{place}[3]"]
    assert "without a passphrase" in found[f"{place}[4]"]
    assert "directory" in found["clusters[0].tls.certificate"]
    assert all(fault.where.startswith(f"{path}:") for fault in caught.value.faults)


def _encrypted(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization as pem  # noqa: PLC0415

    return pem.load_pem_private_key(key, None).private_bytes(
        pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"secret")
    )


def test_choices_that_exclude_each_other(tmp_path: Path) -> None:
    """Without reading any file."""
    text = configuration(
        "certificates: [], require_client_certificate: true, match_san: [{exact: a, prefix: b}, {}]",
        "tls: {verify: false, ca: x, match_san: [{}]}",
    )
    with pytest.raises(ConfigError) as caught:
        parse_text(text)
    assert {fault.path for fault in caught.value.faults} == {
        "listeners[0].tls.certificates",
        "listeners[0].tls.client_ca",
        "listeners[0].tls.match_san[0]",
        "listeners[0].tls.match_san[1]",
        "clusters[0].tls.verify",
        "clusters[0].tls.match_san[0]",
    }


def test_what_certificates_say(tmp_path: Path, authority: Authority) -> None:
    """Names and dates, of one that has expired too; the files to watch, each once."""
    old = authority.issue("old", "a.example", **LONG_AGO)
    mine = authority.issue("mine", "proxy.example")
    config = parse_text(configuration(f"certificates: [{old}, {old}]", f"tls: {{certificate: {mine}}}"))
    first, second = certificates_of(config)
    assert (first.names, first.not_after) == (("a.example",), LONG_AGO["not_after"].timestamp())
    assert second.names == ("proxy.example",)
    assert files_of(config) == [
        str(tmp_path / name) for name in ("old.pem", "old.key", "mine.pem", "mine.key")
    ]
