"""Clients and servers that no one here wrote: curl, websockets, nginx, aiohttp."""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import websockets
from aiohttp import web

from tests.needs import program
from tests.proxy.support import bound, proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def curl(*arguments: str, data: bytes = b"") -> bytes:
    """What curl prints; it must end with status 0."""
    process = await asyncio.create_subprocess_exec(
        *(program("curl"), "-sS", "--max-time", "30", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate(data)
    assert process.returncode == 0, errors
    return out


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[int]:
    """nginx with a file of 3 MiB; its port."""
    (folder / "root").mkdir()
    (folder / "root" / "big").write_bytes(os.urandom(3 << 20))
    sock = bound()
    port = sock.getsockname()[1]
    sock.close()
    temporary = "\n".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(f"""
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{ access_log off; {temporary} gzip on; gzip_types *; gzip_min_length 1;
  server {{ listen 127.0.0.1:{port}; root {folder}/root; location /empty {{ return 204; }} }} }}
""")
    process = await asyncio.create_subprocess_exec(
        program("nginx"), "-c", str(folder / "nginx.conf"), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break
        yield port
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def aiohttp_echo() -> AsyncIterator[int]:
    """An aiohttp server that answers a request's body in chunks, or its hash at /hash."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/hash":
            digest = hashlib.sha256()
            async for piece in request.content.iter_any():
                digest.update(piece)
            return web.Response(text=digest.hexdigest())
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        return response

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_curl_and_nginx(tmp_path: Path) -> None:
    """Whole and partial files, HEAD, 204, 304, 404, HTTP/1.0, compression, and two requests on one connection."""
    async with nginx(tmp_path) as port, proxy(tmp_path, port) as running:
        url = f"http://127.0.0.1:{running.port}"
        big = (tmp_path / "root" / "big").read_bytes()
        assert await curl(f"{url}/big") == big
        assert await curl("-0", f"{url}/big") == big
        assert await curl("--compressed", f"{url}/big") == big
        assert await curl("-r", "100-199", f"{url}/big") == big[100:200]
        head = await curl("-I", f"{url}/big")
        assert b"Content-Length: 3145728" in head
        assert b"HTTP/1.1 204" in await curl("-i", f"{url}/empty")
        assert b"HTTP/1.1 404" in await curl("-i", f"{url}/nothing")
        stamp = head.split(b"Last-Modified: ")[1].split(b"\r")[0].decode()
        unchanged = await curl("-i", "-H", f"If-Modified-Since: {stamp}", f"{url}/big")
        assert b"HTTP/1.1 304" in unchanged
        twice = await curl("-w", "%{num_connects} ", f"{url}/empty", f"{url}/empty")
        assert twice == b"1 0 "


async def test_curl_and_aiohttp(tmp_path: Path) -> None:
    """Uploads with a length (curl waits for 100 Continue) and in chunks, and answers in chunks, of 5 MiB."""
    data = os.urandom(5 << 20)
    digest = hashlib.sha256(data).hexdigest().encode()
    async with aiohttp_echo() as port, proxy(tmp_path, port) as running:
        url = f"http://127.0.0.1:{running.port}"
        (tmp_path / "data").write_bytes(data)
        assert await curl("--data-binary", f"@{tmp_path}/data", f"{url}/hash") == digest
        assert await curl("-T", "-", f"{url}/hash", data=data) == digest
        assert await curl("-T", "-", f"{url}/echo", data=data) == data
        assert await curl("-0", "--data-binary", f"@{tmp_path}/data", f"{url}/echo") == data


async def test_websockets(tmp_path: Path) -> None:
    """A client of the library `websockets` talks to a server of it: text, a megabyte, a ping, an orderly end."""

    async def echo(connection: websockets.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with proxy(tmp_path, port) as running:
            async with websockets.connect(f"ws://127.0.0.1:{running.port}/chat", max_size=None) as client:
                for message in ("hello", "x" * (1 << 20), b"\0" * 1000):
                    await client.send(message)
                    assert await client.recv() == message
                await (await client.ping())
            (line,) = await running.log()
            assert (line["status"], line["path"]) == (101, "/chat")
