"""Each incident as one signed POST, in the form of Standard Webhooks (specification 1.0.0).

`webhook-id` is the same at every retry, so a receiver can tell a repetition; `webhook-signature` is the HMAC-SHA256 of
id, time and body. The body is `{"type", "timestamp", "data"}`; `data` is the incident document as in `incident.json`.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hmac
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from sentinel_agent.core.event import IncidentSealed
from sentinel_agent.core.units import Duration
from sentinel_agent.errors import OperatorError
from sentinel_agent.export.base import ExporterOptions, Secret, Signal
from sentinel_exporters._common import (
    event_facts,
    event_name,
    event_target,
    event_words,
    incident_ids,
    to_json,
)
from sentinel_exporters.http import HttpOptions, HttpSender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.export.base import ExportedEvent, ExporterContext, Item

EventKind = Literal[
    "incident.sealed", "incident.opened", "incident.lost", "target.appeared", "target.gone", "limit.reached"
]
_PREFIX = "whsec_"
_SIZES = range(16, 65)
"""Bytes that a secret may have; Standard Webhooks asks for 24 to 64, and we do not send away who has 16."""


class Options(HttpOptions, frozen=True, kw_only=True):
    """Where incidents are told."""

    secret: Annotated[
        Secret | None,
        Meta(description="signs each request: `whsec_` and base64, or any text of 16 to 64 bytes"),
    ] = None
    events: Annotated[tuple[EventKind, ...], Meta(description="what is told")] = ("incident.sealed",)
    batch: Annotated[int, Meta(ge=1, le=1, description="always 1: one request for each event")] = 1
    interval: Annotated[Duration, Meta(ge=0.01, le=300, description="how long an event waits at most")] = 0.05


class WebhookExporter:
    """See the module."""

    Options: ClassVar[type[ExporterOptions]] = Options
    signals: ClassVar[tuple[Signal, ...]] = ("events",)

    def __init__(self, options: ExporterOptions, context: ExporterContext) -> None:
        assert isinstance(options, Options)
        self._http = HttpSender(options, context)
        self._url = options.url
        self._clock = context.clock
        self._wanted = {f"sentinel.{name}" for name in options.events}
        self._key = None if options.secret is None else key_of(options.secret)

    def encode(self, signal: Signal, items: Sequence[Item]) -> bytes | None:
        """One document; what the settings do not name is not told."""
        event: ExportedEvent = items[0]  # type: ignore[assignment]  # the only signal is events, the only batch one
        if event_name(event) not in self._wanted:
            return None
        return to_json(document(event))

    async def send(self, signal: Signal, body: bytes) -> str:
        """POST it. Only the answer's status counts."""
        about = msgspec.json.decode(body, type=_About)
        moment = str(int(self._clock.wall()))
        headers = {"webhook-id": about.id, "webhook-timestamp": moment}
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, about.id, moment, body)
        words, _ = await self._http.post(self._url, body, "application/json", headers)
        return words

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()


class _About(msgspec.Struct):
    id: str


def document(event: ExportedEvent) -> dict[str, object]:
    """What is told of an event. `id` never changes, however often it is sent."""
    moment = datetime.datetime.fromtimestamp(event.time, datetime.UTC)
    name = event_name(event)
    target = event_target(event)
    if isinstance(event, IncidentSealed):
        key, data = event.incident.id, msgspec.to_builtins(event.incident)
    else:
        key = f"{target.role.key}/{target.pid}/{event.time}"
        data = {"target": msgspec.to_builtins(target), "summary": event_words(event), **event_facts(event)}
    return {
        "id": f"msg_{incident_ids(f'{name}/{key}')[0]}",
        "type": name,
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": data,
    }


def key_of(secret: str) -> bytes:
    """The bytes that sign.

    Raises:
        OperatorError: `whsec_` is followed by no base64, or it is too short.
    """
    key = secret.encode()
    if secret.startswith(_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error as error:
            raise OperatorError("secret: expected base64 after whsec_") from error
    if len(key) not in _SIZES:
        raise OperatorError(
            f"secret: expected 16 to 64 bytes, found {len(key)}", hint="openssl rand -base64 32"
        )
    return key


def signature(key: bytes, message_id: str, moment: str, body: bytes) -> str:
    """`v1,<base64>`: Standard Webhooks, section "Signature scheme"."""
    signed = b".".join((message_id.encode(), moment.encode(), body))
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"
