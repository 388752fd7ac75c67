"""gRPC calls of ready-made bytes with grpclib; replies are not read.

A call that takes a stream is sent as one, and one that takes a message is the same on the wire with one message. Of the
answer only the status counts: its message stays in the connection's window of 64 KiB, so a server that answers with a
gigabyte is a server that does not answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sentinel_agent.export.base import Blame, SendError
from sentinel_agent.export.registry import needs
from sentinel_exporters.http import printable, unreachable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    from grpclib.client import Channel

_WINDOW = 2**16
_REFUSED = frozenset({"UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND"})
_REMEDIES = {
    "UNIMPLEMENTED": "the server's receiver for it is off",
    "UNAUTHENTICATED": "see the exporter's `token`",
    "PERMISSION_DENIED": "see the exporter's `token`",
}
_REJECTED = frozenset({"INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION", "ALREADY_EXISTS"})


def blame(status: str) -> Blame:
    """Whose fault a status is (gRPC, status codes)."""
    if status in _REFUSED:
        return "refused"
    return "rejected" if status in _REJECTED else "passing"


class GrpcSender:
    """One connection, made when it is first used."""

    def __init__(self, address: str, metadata: Mapping[str, str], *, tls: bool, ca_file: str | None) -> None:
        """Load grpclib.

        Raises:
            OperatorError: it is not installed.
        """
        try:
            import grpclib.client  # noqa: F401, PLC0415 - only agents that speak gRPC have it in memory
        except ImportError:
            raise needs("grpclib", "skywalking") from None
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._metadata = dict(metadata)
        self._tls, self._ca_file = tls, ca_file
        self._channel: Channel | None = None

    async def call(self, method: str, messages: Sequence[bytes]) -> None:
        """Send the messages and wait for the status.

        Raises:
            SendError: it is not OK, or there is none.
        """
        from grpclib.const import Cardinality  # noqa: PLC0415 - it is there, see above
        from grpclib.exceptions import (  # noqa: PLC0415 - as above
            GRPCError,
            ProtocolError,
            StreamTerminatedError,
        )

        request = self._made().request(
            method, Cardinality.STREAM_STREAM, bytes, bytes, metadata=self._metadata
        )
        try:
            async with request as stream:
                await stream.send_request()
                for number, message in enumerate(messages, 1):
                    await stream.send_message(message, end=number == len(messages))
                await stream.recv_initial_metadata()
                await stream.recv_trailing_metadata()
        except GRPCError as error:
            name = error.status.name
            told = f"{name}: {printable(error.message)}" if error.message else name
            remedy = f"; {_REMEDIES[name]}" if name in _REMEDIES else ""
            raise SendError(f"{method}: {told}{remedy}", blame(name)) from error
        except ConnectionError as error:
            raise SendError(unreachable(f"{self._host}:{self._port}", error)) from error
        except (OSError, ProtocolError, StreamTerminatedError, ValueError) as error:
            raise SendError(printable(f"{type(error).__name__}: {error}")) from error

    def _made(self) -> Channel:
        from grpclib.client import Channel  # noqa: PLC0415 - it is there, see above
        from grpclib.config import Configuration  # noqa: PLC0415 - as above

        if self._channel is None:
            trust: ssl.SSLContext | bool | None = True if self._tls else None
            if self._tls and self._ca_file is not None:
                import ssl  # noqa: PLC0415 - only where it is wanted

                trust = ssl.create_default_context(cafile=self._ca_file)
                trust.set_alpn_protocols(["h2"])
            windows = Configuration(http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW)
            self._channel = Channel(self._host, self._port, codec=_codec(), ssl=trust, config=windows)
        return self._channel

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()


def _codec() -> Any:
    """Messages are bytes already."""
    from grpclib.encoding.base import CodecBase  # noqa: PLC0415 - it is there, see above

    class Raw(CodecBase):
        __content_subtype__ = "proto"

        def encode(self, message: bytes, message_type: Any) -> bytes:
            return message

        def decode(self, data: bytes, message_type: Any) -> bytes:
            return data

    return Raw()
