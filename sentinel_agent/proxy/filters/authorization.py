"""External authorization: a server is asked about each request before it goes on.

After Envoy's HTTP filter `ext_authz` with an HTTP service: the server is asked with the request's method and path and
the headers that it may see. An answer of 200 lets the request pass, with headers of the answer for the upstream; any
other is the client's answer. Without an answer `failure_mode_allow` decides: pass, or 403.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from sentinel_agent.core.units import ByteSize, Duration
from sentinel_agent.proxy.config_types import FieldName, Name, Path_
from sentinel_agent.proxy.filters import Hooks, Reply, check_field

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sentinel_agent.proxy.filters import Answer, Request, Verdict

_Fields = Annotated[tuple[FieldName, ...], Meta(max_length=50)]


class AuthorizationOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is asked, how long, and which headers go where."""

    cluster: Name
    path_prefix: Annotated[Path_ | None, Meta(description="put before the path of the request")] = None
    timeout: Annotated[Duration, Meta(gt=0, le=60)] = 0.2
    failure_mode_allow: Annotated[bool, Meta(description="without an answer, let the request pass")] = False
    status_on_error: Annotated[int, Meta(ge=400, le=599, description="without an answer, else")] = 403
    request_headers: Annotated[
        _Fields, Meta(description="what the server sees, beside Host, X-Forwarded-For and Content-Length 0")
    ] = ("authorization", "cookie")
    upstream_headers: Annotated[
        _Fields,
        Meta(description="of the server's answer, given to the upstream; never taken from the client"),
    ] = ()
    client_headers: Annotated[_Fields, Meta(description="of an answer that refuses, given to the client")] = (
        "www-authenticate",
        "location",
        "set-cookie",
        "content-type",
    )
    max_body: Annotated[ByteSize, Meta(ge=0, le=1048576, description="of an answer that refuses")] = 8192


class Authorization:
    """The filter `ext_authz`."""

    Options = AuthorizationOptions

    def __init__(self, options: AuthorizationOptions) -> None:
        """Check the names.

        Raises:
            ValueError: a header that frames the message.
        """
        for name in (*options.upstream_headers, *options.client_headers):
            check_field(name, "")
        self.hooks = Hooks(request=self._request, clusters=(options.cluster,))
        self._options = options

    async def _request(self, request: Request) -> Verdict:
        options = self._options
        for name in options.upstream_headers:  # what the server says counts, not what a client pretends
            request.remove_header(name)
        try:
            answer = await request.call(
                options.cluster,
                self._question(request),
                timeout=options.timeout,
                keep=options.max_body,
                again=True,
            )
        except OSError:  # TimeoutError is one
            if options.failure_mode_allow:
                request.count("ext_authz.failed_open")
                return None
            request.count("ext_authz.failed")
            return Reply(options.status_on_error, b"the request could not be authorized\n")
        if answer.status == 200:
            for name, value in _chosen(answer, options.upstream_headers):
                request.set_header(name, value)
            return None
        request.count("ext_authz.denied")
        status = answer.status if 300 <= answer.status <= 599 else 403
        return Reply(status, answer.body, tuple(_chosen(answer, options.client_headers)))

    def _question(self, request: Request) -> bytes:
        """The request to the server; what goes into it was checked when the request was read."""
        options = self._options
        target = (options.path_prefix or "").rstrip("/").encode() + request.target
        lines = [b"%b %b HTTP/1.1" % (request.method, target), b"Host: %b" % (request.header("host") or b"-")]
        lines.append(b"X-Forwarded-For: %b" % request.client.encode())
        if request.method not in (b"GET", b"HEAD"):
            lines.append(b"Content-Length: 0")
        for name in options.request_headers:
            value = request.header(name)
            if value is not None:
                lines.append(b"%b: %b" % (name.encode(), value))
        return b"\r\n".join((*lines, b"", b""))


def _chosen(answer: Answer, names: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    """The headers of these names; those that no header line of ours may hold are left out."""
    wanted = {name.lower() for name in names}
    for name, value in answer.headers:
        if name in wanted:
            try:
                check_field(name, value)
            except ValueError:
                continue
            yield name, value
