"""The keys of `tls`, at a listener and at a cluster, in Envoy's words.

Files are read when the configuration is, and again when they change; the faults of a file are faults of the configuration.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sentinel_agent.core.units import Duration

File = Annotated[str, Meta(min_length=1, max_length=4096)]
Version = Literal["TLSv1.2", "TLSv1.3"]
Alpn = Annotated[
    tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...],
    Meta(max_length=10, description="protocols that are offered (ALPN), the preferred one first"),
]


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate and its private key, PEM, the key without a passphrase."""

    cert: Annotated[File, Meta(description="the certificate, then those that lead to its authority")]
    key: Annotated[File, Meta(description="its private key")]


class SanMatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A condition on a subject alternative name (host name, address, URI, mail): one of exact, prefix and suffix."""

    exact: Annotated[Annotated[str, Meta(max_length=1000)] | None, Meta(description="the whole name")] = None
    prefix: Annotated[
        Annotated[str, Meta(max_length=1000)] | None, Meta(description="how the name begins")
    ] = None
    suffix: Annotated[Annotated[str, Meta(max_length=1000)] | None, Meta(description="how the name ends")] = (
        None
    )


class DownstreamTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TLS with clients."""

    certificates: Annotated[
        tuple[Certificate, ...],
        Meta(max_length=100, description="chosen by the name that the client asks for (SNI); else the first"),
    ]
    min_version: Annotated[Version, Meta(description="the oldest version that is spoken")] = "TLSv1.2"
    alpn: Alpn = ("http/1.1",)
    client_ca: Annotated[
        File | None, Meta(description="authorities of clients' certificates, which are asked for")
    ] = None
    require_client_certificate: Annotated[bool, Meta(description="a client without one is refused")] = False
    match_san: Annotated[
        tuple[SanMatch, ...],
        Meta(max_length=100, description="a name of the client's certificate must meet one of these"),
    ] = ()
    allow_plaintext: Annotated[
        bool, Meta(description="serve clients without TLS on the same port, told apart by their first byte")
    ] = False
    handshake_timeout: Annotated[Duration, Meta(gt=0, le=300)] = 10.0


class UpstreamTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TLS to the servers of a cluster."""

    ca: Annotated[
        File | None, Meta(description="authorities of the servers' certificates; unset: those of the system")
    ] = None
    sni: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | None,
        Meta(description="the name that is asked for (SNI); unset: that of the endpoint"),
    ] = None
    match_san: Annotated[
        tuple[SanMatch, ...],
        Meta(
            max_length=100,
            description="a name of the server's certificate must meet one of these; empty: it must be the name asked for",
        ),
    ] = ()
    certificate: Annotated[Certificate | None, Meta(description="what we show the servers")] = None
    min_version: Annotated[Version, Meta(description="the oldest version that is spoken")] = "TLSv1.2"
    alpn: Alpn = ()
    verify: Annotated[bool, Meta(description="whether the servers' certificates are checked at all")] = True
