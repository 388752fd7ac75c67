"""Profiles of sealed incidents to a Pyroscope server: push.v1.PusherService/Push (grafana/pyroscope, api/push/v1).

The protocol is Connect's unary POST with a protobuf body. Every artifact in the pprof format is one series; labels are
the service, its instance, the rule and the kind of profile. The incident's id is no label, it is the sample's id.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import Meta

from sentinel_agent.profile.protobuf import block
from sentinel_exporters._artifacts import Parcel, parcels, read_file
from sentinel_exporters._common import text
from sentinel_exporters.http import HttpOptions, HttpSender, with_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentinel_agent.core.model import Artifact
    from sentinel_agent.export.base import ExporterContext, ExporterOptions, Item, Signal

PATH = "/push.v1.PusherService/Push"
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}")


class Options(HttpOptions, frozen=True, kw_only=True):
    """Where Pyroscope is: `http://pyroscope:4040`."""

    tenant: Annotated[str | None, Meta(description="sent as `X-Scope-OrgID`")] = None
    labels: Annotated[dict[str, str], Meta(description="labels that every profile gets")] = {}  # noqa: RUF012 - msgspec copies it
    batch: Annotated[int, Meta(ge=1, le=1, description="always 1: one request for each incident")] = 1


class PyroscopeExporter:
    """See the module."""

    Options: ClassVar[type[ExporterOptions]] = Options
    signals: ClassVar[tuple[Signal, ...]] = ("artifacts",)

    def __init__(self, options: ExporterOptions, context: ExporterContext) -> None:
        assert isinstance(options, Options)
        self._http = HttpSender(options, context)
        self._url = with_path(options.url, PATH)
        self._labels = {name: value for name, value in options.labels.items() if _LABEL.fullmatch(name)}
        self._headers = {"X-Scope-OrgID": options.tenant} if options.tenant else {}

    def encode(self, signal: Signal, items: Sequence[Item]) -> bytes | None:
        """Which files to push; an incident without a profile is none of Pyroscope's business."""
        found = [each for each in parcels(list(items)) if _profiles(each)]
        return msgspec.json.encode(found) if found else None

    async def send(self, signal: Signal, body: bytes) -> str:
        """Read the profiles and push them, one request an incident."""
        words = ""
        for parcel in msgspec.json.decode(body, type=list[Parcel]):
            request = await asyncio.to_thread(self._request, parcel)
            words, _ = await self._http.post(self._url, request, "application/proto", self._headers)
        return words

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    def _request(self, parcel: Parcel) -> bytes:
        """A PushRequest."""
        series = []
        for each in _profiles(parcel):
            pairs = self._of(parcel, each).items()
            labels = b"".join(block(1, text(1, name) + text(2, value)) for name, value in pairs)
            sample = block(1, read_file(parcel, each.name)) + text(2, _sample_id(parcel, each))
            series.append(block(1, labels + block(2, sample)))
        return b"".join(series)

    def _of(self, parcel: Parcel, artifact: Artifact) -> dict[str, str]:
        """The labels, in the order of their names, as Pyroscope keeps them."""
        labels = {
            "__name__": "process_cpu" if "cpu" in artifact.name else "wall",
            "service_name": parcel.service,
            "instance": parcel.instance,
            "worker": parcel.worker,
            "rule": parcel.rule,
            "kind": artifact.kind,
            "pyroscope_spy": "sentinel-agent",
            **self._labels,
        }
        return dict(sorted(labels.items()))


def _profiles(parcel: Parcel) -> list[Artifact]:
    return [each for each in parcel.artifacts if each.format == "pprof"]


def _sample_id(parcel: Parcel, artifact: Artifact) -> str:
    """A UUID that is always the same for this file, so that a repetition can be told."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{parcel.host}/{parcel.id}/{artifact.name}"))
