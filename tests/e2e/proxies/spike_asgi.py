"""An ASGI service for gunicorn with uvicorn workers: /spike burns CPU in the worker that got the request."""

import os
import time


def burn_in_worker(seconds: float) -> int:
    """The hot function that the incident must name."""
    end, total = time.process_time() + seconds, 0
    while time.process_time() < end:
        for i in range(1000):
            total += i * i
    return total


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            kind = message["type"].removeprefix("lifespan.")
            await send({"type": f"lifespan.{kind}.complete"})
            if kind == "shutdown":
                return
    if scope["path"].startswith("/spike"):
        burn_in_worker(4.0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})
