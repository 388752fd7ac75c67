"""The Connect protocol, unary calls: content types, errors, compression.

Source: connectrpc.com, "Connect Protocol Reference", sections "Unary-Request", "Unary-Response" and "Error Codes". A reply
has exactly the request's content type: Grafana's client refuses others.
"""

from __future__ import annotations

import gzip
from typing import Literal

import msgspec

Code = Literal[
    "invalid_argument",
    "unauthenticated",
    "permission_denied",
    "not_found",
    "resource_exhausted",
    "internal",
    "unimplemented",
    "unavailable",
    "deadline_exceeded",
]
STATUS: dict[Code, int] = {
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "resource_exhausted": 429,
    "internal": 500,
    "unimplemented": 501,
    "unavailable": 503,
    "deadline_exceeded": 504,
}
CODE_OF_STATUS: dict[int, Code] = {status: code for code, status in STATUS.items()} | {
    421: "permission_denied"
}
PROTO, JSON = "application/proto", "application/json"
_COMPRESSED_FROM = 1024  # bytes
_LEVEL = 1  # it shares a core with the agent


class ConnectError(Exception):
    """A call that failed, with its code."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def codec_of(content_type: str) -> str | None:
    """The content type of a request's body and so of the reply; None for one that is not spoken here (HTTP 415)."""
    kind, _, parameters = content_type.partition(";")
    kind = kind.strip().lower()
    if kind == PROTO and not parameters.strip():
        return PROTO
    return JSON if kind == JSON and parameters.strip().lower() in {"", "charset=utf-8"} else None


def error_body(code: Code, message: str) -> bytes:
    """The body of a failed call, whose content type is JSON whatever the request's is."""
    return msgspec.json.encode({"code": code, "message": message})


def compressed(body: bytes, accept_encoding: str) -> bytes | None:
    """The body gzipped, if the client takes that and it is worth it."""
    accepted = {each.split(";")[0].strip().lower() for each in accept_encoding.split(",")}
    if "gzip" not in accepted or len(body) < _COMPRESSED_FROM:
        return None
    return gzip.compress(body, _LEVEL, mtime=0)
