"""What is known of a request when it is over: a line of the access log, and what a span is made of."""

from __future__ import annotations

import msgspec


class RequestRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One request. `time` is its start in seconds since the epoch, durations are in seconds.

    `upstream_seconds` is the time from the first try to the answer's head; `flags` is a code of `flags.py`.
    Ids are hexadecimal; `span` is the proxy's server span, `client_span` the one that the upstream was told. `sw8` and
    `sw8_correlation` are the headers of a caller that speaks SkyWalking, as they came; `debug` is B3's.
    """

    time: float
    listener: str
    route: str
    cluster: str
    upstream: str
    client: str
    method: str
    path: str
    host: str
    status: int
    seconds: float
    upstream_seconds: float
    bytes_in: int
    bytes_out: int
    tries: int = 0
    flags: str = ""
    detail: str = ""
    trace: str = ""
    span: str = ""
    parent: str = ""
    client_span: str = ""
    sampled: bool = False
    sw8: str = ""
    sw8_correlation: str = ""
    debug: bool = False
