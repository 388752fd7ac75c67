"""Message heads of HTTP/1.1: found, checked, and read as far as a proxy needs.

A head is judged twice, so that no other parser on the way can see another message in the same bytes:

- llhttp (through httptools) checks the grammar of every header line and refuses bare CR and LF, NUL, folded lines,
  space before the colon, two lengths, a length beside a transfer coding (RFC 9112 sections 2.2, 5, 6.3, 11.2);
- the start line is read by an expression of ours that is stricter than llhttp, which takes HTTP/0.9 and 2.0, RTSP, ICE
  and two spaces; and `Host`, the transfer codings and `Connection` are judged here.

The head stays bytes. Only the fields in `REQUEST_FIELDS` and `RESPONSE_FIELDS` are taken out, by one expression in one
pass, because most requests are forwarded as they came: making objects of every header costs more than all the rest.
Since llhttp has shown that lines end in CRLF and nowhere else, a line begins exactly after a line feed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import httptools

from sentinel_agent.proxy.wire.faults import Limits, WireError

if TYPE_CHECKING:
    from collections.abc import Iterable

_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]{0,31}) ([\x21-\x7e]++) HTTP/1\.([01])\r\n")
_OTHER_VERSION = re.compile(rb"[A-Z-]+ [\x21-\x7e]+ (HTTP/(?!1\.[01]\r)[0-9](?:\.[0-9])?)\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?\r\n")
_HOST = re.compile(rb"(?:[\x21\x24-\x2b\x2d\x2e0-9;=A-Z_a-z~%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_DOT_SEGMENT = re.compile(rb"/(?:\.|%2[eE]){1,2}(?:/|\?|\Z)|/(?:\.|%2[eE]){1,2};")

END: Final = b"\r\n\r\n"

REQUEST_FIELDS: Final = (
    b"host",
    b"connection",
    b"content-length",
    b"transfer-encoding",
    b"expect",
    b"upgrade",
    b"te",
    b"keep-alive",
    b"proxy-connection",
)
TRACE_FIELDS: Final = (
    b"traceparent",
    b"tracestate",
    b"b3",
    b"x-b3-traceid",
    b"x-b3-spanid",
    b"x-b3-parentspanid",
    b"x-b3-sampled",
    b"x-b3-flags",
    b"sw8",
    b"sw8-correlation",
)
FORWARDED_FIELDS: Final = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id")
RESPONSE_FIELDS: Final = (
    b"connection",
    b"content-length",
    b"transfer-encoding",
    b"upgrade",
    b"keep-alive",
    b"proxy-connection",
)
_ONCE: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))
_FRAMING: Final = frozenset((b"host", b"content-length", b"transfer-encoding"))
HOP_BY_HOP: Final = frozenset((b"connection", b"te", b"upgrade", b"keep-alive", b"proxy-connection"))
"""Fields that end here (RFC 9110 section 7.6.1). `Transfer-Encoding` goes on, since the chunks do."""


_ENDS_HERE: Final = HOP_BY_HOP - {b"connection"}


class _NoCallbacks:
    """llhttp judges; what it found is read by the expressions of this module.

    Each name that httptools looks for is there: looking for what is missing costs more than parsing.
    """

    on_message_begin = on_url = on_status = on_header = on_headers_complete = None
    on_body = on_chunk_header = on_chunk_complete = on_message_complete = None


SILENT: Final = _NoCallbacks()
_hosts: set[bytes] = set()
_MAX_HOSTS = 1000


def is_host(value: bytes) -> bool:
    """Whether a value of Host is a host name with or without a port; those seen are remembered, within bounds."""
    if value in _hosts:
        return True
    if _HOST.fullmatch(value) is None:
        return False
    if len(_hosts) < _MAX_HOSTS:
        _hosts.add(value)
    return True


def fields_pattern(names: Iterable[bytes]) -> re.Pattern[bytes]:
    """An expression whose matches are the (name, value) of these header lines, in any case."""
    words = b"|".join(re.escape(name) for name in names)
    return re.compile(rb"\n(?i:(" + words + rb")):[ \t]*+([^\r]*)")


REQUEST_PATTERN: Final = fields_pattern((*REQUEST_FIELDS, *TRACE_FIELDS, *FORWARDED_FIELDS))
BARE_REQUEST_PATTERN: Final = fields_pattern(REQUEST_FIELDS)
RESPONSE_PATTERN: Final = fields_pattern(RESPONSE_FIELDS)


class RequestHead:
    """A request's head. `fields` has lower-case names; a list field given more than once is joined with commas.

    `raw` ends with the empty line; `line_end` is where its first header line begins. `length` is the body's length,
    None for a chunked one. `as_it_is` is whether the head may go on unchanged: HTTP/1.1, nothing in it ends here.
    """

    length: int | None = 0
    chunked = False
    nominated: tuple[bytes, ...] = ()
    target_is_path = True

    def __init__(self, raw: bytes, line: re.Match[bytes]) -> None:
        self.raw = raw
        self.method, self.target, minor = line.groups()
        self.minor = 1 if minor == b"1" else 0
        self.line_end = line.end()
        self.fields: dict[bytes, bytes] = {}
        self.keep_alive = self.as_it_is = minor == b"1"

    @property
    def upgrade(self) -> bytes | None:
        """The protocol that the client wants to change to, lower case; None if it wants none."""
        return self.fields[b"upgrade"].lower() if b"upgrade" in self.nominated else None

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100 before it sends its body."""
        return b"expect" in self.fields and self.minor == 1


class ResponseHead:
    """A response's head. `length` is None where the body is chunked or, with `until_close`, ends with the connection."""

    length: int | None = 0
    chunked = False
    until_close = False
    nominated: tuple[bytes, ...] = ()

    def __init__(self, raw: bytes, line: re.Match[bytes]) -> None:
        self.raw = raw
        self.minor = 1 if line[1] == b"1" else 0
        self.status = int(line[2])
        self.line_end = line.end()
        self.fields: dict[bytes, bytes] = {}
        self.keep_alive = self.as_it_is = self.minor == 1


def parse_request(
    raw: bytes, limits: Limits, pattern: re.Pattern[bytes] = BARE_REQUEST_PATTERN
) -> RequestHead:
    """Read a head that ends with its empty line; `pattern` says which fields are taken out.

    Raises:
        WireError: with the status to answer.
    """
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _refused_line(raw)
    if raw.count(b"\n") > limits.headers + 2:
        raise WireError(431, f"more than {limits.headers} header lines")
    _judge(httptools.HttpRequestParser(SILENT), raw, 400)
    head = RequestHead(raw, line)
    fields = head.fields
    for written, value in pattern.findall(raw, head.line_end - 1):
        name = written.lower()
        if name in fields:
            _add_again(fields, name, value.rstrip(b" \t"), 400)
        else:
            fields[name] = value.rstrip(b" \t")
    _check_target(head, limits)
    host = fields.get(b"host")
    if host is None:
        if head.minor:
            raise WireError(400, "a request of HTTP/1.1 without Host")
    elif not is_host(host):
        raise WireError(400, "Host is no host name")
    if len(fields) > 1 or host is None:
        _frame_request(head)
    return head


def parse_response(
    raw: bytes, method: bytes, pattern: re.Pattern[bytes] = RESPONSE_PATTERN, max_headers: int = 200
) -> ResponseHead:
    """Read the head of a response to a request of `method`.

    Raises:
        WireError: always with status 502: the upstream is at fault.
    """
    line = _STATUS_LINE.match(raw)
    if line is None:
        raise WireError(502, "the upstream's answer does not begin with a status line of HTTP/1")
    if raw.count(b"\n") > max_headers + 2:
        raise WireError(502, f"the upstream's answer has more than {max_headers} header lines")
    _judge(httptools.HttpResponseParser(SILENT), raw, 502)
    head = ResponseHead(raw, line)
    fields = head.fields
    for written, value in pattern.findall(raw, head.line_end - 1):
        name = written.lower()
        if name in fields:
            _add_again(fields, name, value.rstrip(b" \t"), 502)
        else:
            fields[name] = value.rstrip(b" \t")
    _frame_response(head, method)
    return head


def _judge(
    parser: httptools.HttpRequestParser | httptools.HttpResponseParser, raw: bytes, status: int
) -> None:
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        return
    except httptools.HttpParserError as error:
        raise WireError(status, str(error)) from None


def _add_again(fields: dict[bytes, bytes], name: bytes, value: bytes, status: int) -> None:
    """A field that is there already."""
    if name in _ONCE:
        raise WireError(status, f"{name.decode()} is given twice")
    if name == b"traceparent":  # two parents are none (W3C Trace Context section 3.2.2.5)
        fields[name] = b""
    else:
        fields[name] += b", " + value


def _refused_line(raw: bytes) -> WireError:
    other = _OTHER_VERSION.match(raw)
    if other is not None:
        return WireError(505, f"expected HTTP/1.0 or HTTP/1.1, found {other[1].decode()}")
    return WireError(400, "the first line is no request line of HTTP/1")


def _check_target(head: RequestHead, limits: Limits) -> None:
    target = head.target
    if len(target) > limits.target:
        raise WireError(414, f"the request target is longer than {limits.target} bytes")
    if target[0] == 0x2F:  # "/"
        if b"#" in target:
            raise WireError(400, "the request target has a fragment")
        if (b"/." in target or b"/%2" in target) and _DOT_SEGMENT.search(target.partition(b"?")[0]):
            head.target = remove_dot_segments(target)
            head.as_it_is = False
        return
    if head.method == b"CONNECT":
        raise WireError(501, "CONNECT: this is no forward proxy")
    if target == b"*":
        if head.method != b"OPTIONS":
            raise WireError(400, "the request target * belongs to OPTIONS")
        return
    _take_absolute_form(head)


def _take_absolute_form(head: RequestHead) -> None:
    """`http://host/path`: the host of the target counts, not the field (RFC 9112 section 3.2.2)."""
    scheme, found, rest = head.target.partition(b"://")
    authority, slash, path = rest.partition(b"/")
    if not found or scheme.lower() not in (b"http", b"https") or b"#" in rest:
        raise WireError(400, "the request target is neither a path nor a URL")
    if not authority or _HOST.fullmatch(authority) is None or b"?" in authority:
        raise WireError(400, "the request target's host is no host name")
    head.fields[b"host"] = authority
    head.target_is_path = False
    head.target = remove_dot_segments(slash + path) if path else b"/"
    head.as_it_is = False


def remove_dot_segments(target: bytes) -> bytes:
    """A path without `.` and `..` (RFC 3986 section 5.2.4), so that a route cannot be walked around; query as it is."""
    path, question, query = target.partition(b"?")
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for index, segment in enumerate(segments):
        plain = re.sub(rb"%2[eE]", b".", segment).split(b";", 1)[0]
        last = index == len(segments) - 1
        if plain not in (b".", b".."):
            kept.append(segment)
            continue
        if plain == b".." and kept:
            kept.pop()
        if last:
            kept.append(b"")
    return b"/" + b"/".join(kept) + question + query


def _frame_request(head: RequestHead) -> None:
    fields = head.fields
    _body_of_request(head, fields)
    if b"expect" in fields and fields[b"expect"].lower() != b"100-continue":
        raise WireError(417, "an expectation other than 100-continue")
    connection = fields.get(b"connection")
    if connection is not None and connection.lower() != b"keep-alive":
        head.nominated = _tokens(connection, 400)
        head.as_it_is = False
        if b"close" in head.nominated:
            head.keep_alive = False
        if b"upgrade" in head.nominated and b"upgrade" not in fields:
            raise WireError(400, "Connection names Upgrade, which is not there")
    elif connection is not None and head.minor == 0:
        head.keep_alive = True
    if head.as_it_is:
        head.as_it_is = _ENDS_HERE.isdisjoint(fields)  # `Connection: keep-alive` says the same on every hop


def _body_of_request(head: RequestHead, fields: dict[bytes, bytes]) -> None:
    coding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise WireError(400, "a length beside a transfer coding")
        if head.minor == 0:
            raise WireError(400, "a transfer coding in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise WireError(501, "a transfer coding other than chunked")
        head.chunked, head.length = True, None
    elif length is not None:
        head.length = _length(length, 400)


def _frame_response(head: ResponseHead, method: bytes) -> None:
    fields = head.fields
    connection = fields.get(b"connection")
    if connection is not None and connection.lower() != b"keep-alive":
        head.nominated = _tokens(connection, 502)
        head.keep_alive = head.keep_alive and b"close" not in head.nominated
        head.as_it_is = False
    elif connection is not None:
        head.keep_alive = True
    if head.as_it_is:
        head.as_it_is = _ENDS_HERE.isdisjoint(fields)  # `Connection: keep-alive` says the same on every hop
    coding = fields.get(b"transfer-encoding")
    length = fields.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise WireError(502, "the upstream gave a length beside a transfer coding")
        if head.minor == 0 or coding.lower() != b"chunked":
            raise WireError(502, "the upstream used a transfer coding other than chunked")
    size = None if length is None else _length(length, 502)
    if method == b"HEAD" or head.status < 200 or head.status in (204, 304):
        return
    if coding is not None:
        head.chunked, head.length = True, None
    elif size is not None:
        head.length = size
    else:
        head.length, head.until_close, head.keep_alive = None, True, False


def _length(value: bytes, status: int) -> int:
    if not value.isdigit() or len(value) > 18:
        raise WireError(status, "Content-Length is no length")
    return int(value)


def _tokens(value: bytes, status: int) -> tuple[bytes, ...]:
    tokens = tuple(token.strip(b" \t") for token in value.lower().split(b",") if token.strip(b" \t"))
    if not _FRAMING.isdisjoint(tokens):  # a client must not have us drop what frames its message
        raise WireError(status, "Connection names a field that belongs to the message")
    return tokens
