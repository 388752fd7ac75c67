"""A mitmproxy addon: a request for a path that starts with /spike burns CPU inside the proxy."""

import time

from mitmproxy import http


def burn_in_mitmproxy(seconds: float) -> int:
    """The hot function that the incident must name."""
    end, total = time.process_time() + seconds, 0
    while time.process_time() < end:
        for i in range(1000):
            total += i * i
    return total


def request(flow: http.HTTPFlow) -> None:
    if flow.request.path.startswith("/spike"):
        burn_in_mitmproxy(4.0)
