"""Response flags: what went wrong with a request, in Envoy's codes, and whose fault it was.

`ours` are the faults by which the proxy's own health is judged (MOSN: `request_failed`, pkg/types/constant.go); one
that a rule asked for, or that a client caused, is not among them.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Flag(NamedTuple):
    """A code of the access log, in words, and the status that the client is answered."""

    code: str
    words: str
    status: int
    ours: bool = False


NO_ROUTE: Final = Flag("NR", "no route matches", 404, ours=True)
NO_HEALTHY: Final = Flag("UH", "no upstream server is healthy", 503, ours=True)
CONNECT_FAILED: Final = Flag("UF", "the upstream could not be connected to", 503)
CONNECTION_ENDED: Final = Flag("UC", "the upstream ended the connection", 502)
UPSTREAM_TIMEOUT: Final = Flag("UT", "the upstream did not answer in time", 504)
UPSTREAM_FAULT: Final = Flag("UPE", "the upstream broke the protocol", 502)
OVERFLOW: Final = Flag("UO", "the cluster has all it may have", 503)
RATE_LIMITED: Final = Flag("RL", "the rate limit is reached", 429)
CLIENT_FAULT: Final = Flag("DPE", "the client broke the protocol", 400)
CLIENT_TIMEOUT: Final = Flag("DT", "the client did not send in time", 408)
TLS_FAILED: Final = Flag("TLS", "the TLS handshake failed", 0)
CLIENT_LEFT: Final = Flag("DC", "the client ended the connection", 499)
TOO_LARGE: Final = Flag("DL", "the request's body is too large", 413)
FILTERED: Final = Flag("FI", "a filter answered", 403)
INTERNAL: Final = Flag("IE", "internal fault of the proxy", 500, ours=True)
DRAINED: Final = Flag("SH", "the proxy was stopped", 503, ours=True)

REFUSALS: Final = frozenset((RATE_LIMITED, FILTERED))
"""Answers that a rule asked for: nothing has failed, and under an overload there are too many to tell of each."""
