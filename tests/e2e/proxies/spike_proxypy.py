"""A proxy.py plugin: a request for a path that starts with /spike burns CPU inside the proxy."""

import time

from proxy.http.parser import HttpParser
from proxy.http.proxy import HttpProxyBasePlugin


def burn_in_proxypy(seconds: float) -> int:
    """The hot function that the incident must name."""
    end, total = time.process_time() + seconds, 0
    while time.process_time() < end:
        for i in range(1000):
            total += i * i
    return total


class SpikePlugin(HttpProxyBasePlugin):
    """Sees every request before it is forwarded."""

    def before_upstream_connection(self, request: HttpParser) -> HttpParser | None:
        return request

    def handle_client_request(self, request: HttpParser) -> HttpParser | None:
        if request.path and request.path.startswith(b"/spike"):
            burn_in_proxypy(4.0)
        return request

    def handle_upstream_chunk(self, chunk: memoryview) -> memoryview | None:
        return chunk

    def on_upstream_connection_close(self) -> None:
        pass
