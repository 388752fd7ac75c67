"""Sealed incidents to object storage that speaks S3, by obstore.

An incident is `<prefix>/<id>/<file>`, as in its folder; `incident.json` is written last, so where it is, the rest is
whole. What is there already with the same size is not sent again: after an outage it goes on where it stopped. Nothing
is ever deleted and nothing of another's overwritten: how long objects are kept is the bucket's own rule.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

import msgspec
from msgspec import Meta

from sentinel_agent.core.units import Duration
from sentinel_agent.errors import OperatorError
from sentinel_agent.export.base import Blame, ExporterOptions, Secret, SendError, Signal
from sentinel_agent.export.registry import needs
from sentinel_exporters._artifacts import DOCUMENT, Parcel, parcels, read_file
from sentinel_exporters.http import Url, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obstore.store import S3Config

    from sentinel_agent.export.base import ExporterContext, Item


class Options(ExporterOptions, frozen=True, kw_only=True):
    """The bucket, and how to get in. Unset keys are found as AWS' own tools find them (environment, instance role)."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^s3://[^\s/]+",
            max_length=2000,
            description="bucket and prefix: `s3://bucket/prefix`",
        ),
    ]
    endpoint: Annotated[Url | None, Meta(description="address of a server that is not Amazon's")] = None
    region: Annotated[str | None, Meta(description="region of the bucket")] = None
    access_key: Annotated[Secret | None, Meta(description="access key id")] = None
    secret_key: Annotated[Secret | None, Meta(description="secret access key")] = None
    session_token: Annotated[Secret | None, Meta(description="token of temporary keys")] = None
    batch: Annotated[int, Meta(ge=1, le=1, description="always 1: one incident at a time")] = 1
    timeout: Annotated[
        Duration, Meta(ge=0.1, le=3600, description="how long the upload of an incident may take")
    ] = 120.0
    max_age: Annotated[
        Duration, Meta(ge=1, description="an incident that could not be delivered for this long is given up")
    ] = 7 * 86400.0


class S3Exporter:
    """See the module."""

    Options: ClassVar[type[ExporterOptions]] = Options
    signals: ClassVar[tuple[Signal, ...]] = ("artifacts",)

    def __init__(self, options: ExporterOptions, context: ExporterContext) -> None:
        assert isinstance(options, Options)
        try:
            import obstore  # noqa: PLC0415 - heavy: only agents that store objects have it in memory
            from obstore.store import S3Store  # noqa: PLC0415 - as above
        except ImportError:
            raise needs("obstore", "s3") from None
        self._obstore = obstore
        try:
            self._store = S3Store.from_url(
                options.url,
                config=_config(options),
                client_options={
                    "allow_http": bool(options.endpoint and options.endpoint.startswith("http://")),
                    "user_agent": f"sentinel-agent/{context.version}",
                },
                retry_config={"max_retries": 0},  # patience is the line's
            )
        except Exception as error:
            raise OperatorError(f"url: {printable(str(error))}") from error

    def encode(self, signal: Signal, items: Sequence[Item]) -> bytes | None:
        """Which incidents to store."""
        found = parcels(list(items))
        return msgspec.json.encode(found) if found else None

    async def send(self, signal: Signal, body: bytes) -> str:
        """Store every file that is not there yet, the document last."""
        stored = there = 0
        for parcel in msgspec.json.decode(body, type=list[Parcel]):
            for name in (*(artifact.name for artifact in parcel.artifacts), DOCUMENT):
                data = await asyncio.to_thread(read_file, parcel, name)
                try:
                    new = await self._put(f"{parcel.id}/{name}", data)
                except (self._obstore.exceptions.BaseError, OSError) as error:
                    raise SendError(printable(f"{type(error).__name__}: {error}"), blame(error)) from error
                stored, there = stored + new, there + (not new)
        return f"{stored} objects stored" + (f", {there} were there" if there else "")

    async def _put(self, key: str, data: bytes) -> bool:
        """Whether it was not there yet.

        Raises:
            SendError: something else has its place.
        """
        try:
            found = await self._obstore.head_async(self._store, key)
        except FileNotFoundError:
            await self._obstore.put_async(self._store, key, data)
            return True
        if found["size"] != len(data):
            raise SendError(f"{key}: another object of {found['size']} bytes is in its place", "rejected")
        return False

    async def close(self) -> None:
        """Nothing is held open."""


def _config(options: Options) -> S3Config:
    found = {
        "endpoint": options.endpoint,
        "region": options.region
        or ("us-east-1" if options.endpoint else None),  # a server of one's own has one
        "access_key_id": options.access_key,
        "secret_access_key": options.secret_key,
        "session_token": options.session_token,
    }
    return cast("S3Config", {name: value for name, value in found.items() if value is not None})


_REFUSED = (
    "PermissionDeniedError",
    "UnauthenticatedError",
    "NotSupportedError",
    "UnknownConfigurationKeyError",
)


def blame(error: BaseException) -> Blame:
    """A bucket that is not there and a key that is not valid stay so; all else may pass."""
    if type(error).__name__ in _REFUSED or isinstance(error, FileNotFoundError | PermissionError):
        return "refused"
    return "rejected" if type(error).__name__ == "InvalidPathError" else "passing"
