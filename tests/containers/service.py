"""An asyncio service as a target: answers HTTP on loopback with a little work, and keeps some tasks waiting.

`service.py [TASKS]`; prints its port once it listens.
"""

import asyncio
import sys


async def nested(depth: int) -> None:
    if depth:
        await nested(depth - 1)
    else:
        await asyncio.sleep(3600)


def work(depth: int = 20) -> int:
    return work(depth - 1) if depth else sum(i * i for i in range(3000))


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            body = str(work()).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    kept = [asyncio.create_task(nested(8)) for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 0)]
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await asyncio.gather(server.serve_forever(), *kept)


if __name__ == "__main__":
    asyncio.run(main())
