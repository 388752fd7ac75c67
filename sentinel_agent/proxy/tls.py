"""TLS at listeners and to upstreams: contexts from files, which certificate a client gets, whose certificate is let in.

The work is OpenSSL's, by the standard library's `ssl`. A context is built anew when a file changes and is for new
connections; those that are there keep theirs. What is wrong with a file is said in words, before anything is served.
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sentinel_agent.config.files import read_file
from sentinel_agent.errors import OperatorError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Sequence

    from sentinel_agent.config.hints import Place
    from sentinel_agent.proxy.config import ProxyConfig
    from sentinel_agent.proxy.tlsconfig import Certificate, DownstreamTls, SanMatch, UpstreamTls, Version

HANDSHAKE: Final = 0x16
"""The first byte of whoever speaks TLS (RFC 8446 section 5.1, ContentType); no method of HTTP begins with it."""
SHUTDOWN_SECONDS: Final = 2.0
"""How long the other side's close_notify is waited for."""
_VERSIONS: Final[dict[Version, ssl.TLSVersion]] = {
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_ROUNDS: Final = 10


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What a certificate says of itself: its DNS names, and until when it holds (seconds since the epoch)."""

    path: str
    names: tuple[str, ...]
    not_after: float


class ServerTls:
    """A listener's side: `context` is for new connections, `certificates` are those it has, in order."""

    def __init__(self, spec: DownstreamTls) -> None:
        """Read the files.

        Raises:
            OperatorError: one of them is of no use.
        """
        self.spec = spec
        contexts = [_server_context(spec, each) for each in spec.certificates]
        self.certificates = [inspect(each) for each in spec.certificates]
        self.context = contexts[0]
        self._by_name: dict[str, ssl.SSLContext] = {}
        for info, context in zip(self.certificates, contexts, strict=True):
            for name in info.names:
                self._by_name.setdefault(name, context)
        if len(contexts) > 1:
            self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """Give a client the certificate for the name that it asks for (RFC 6066 section 3; wildcards: RFC 6125)."""
        if name is None:
            return
        name = name.lower()
        found = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        if found is not None:
            connection.context = found

    def stranger(self, transport: asyncio.BaseTransport) -> str:
        """Why the client of a new connection is not let in; nothing if it is."""
        return _stranger(self.spec.match_san, transport)


class ClientTls:
    """A cluster's side: `context` is for new connections."""

    def __init__(self, spec: UpstreamTls) -> None:
        """Read the files.

        Raises:
            OperatorError: one of them is of no use.
        """
        self.spec = spec
        self.context = _client_context(spec)

    def stranger(self, transport: asyncio.BaseTransport) -> str:
        """Why the server of a new connection gets no request; nothing if it does."""
        return _stranger(self.spec.match_san, transport)


def _stranger(wanted: tuple[SanMatch, ...], transport: asyncio.BaseTransport) -> str:
    if not wanted:
        return ""
    names = peer_names(transport.get_extra_info("peercert"))
    if any(_meets(name, each) for name in names for each in wanted):
        return ""
    shown = ", ".join(names[:5]) if names else "none"
    return f"no name of the certificate is let in: found {shown}"


def _meets(name: str, wanted: SanMatch) -> bool:
    if wanted.exact is not None:
        return name == wanted.exact
    if wanted.prefix is not None:
        return name.startswith(wanted.prefix)
    return wanted.suffix is not None and name.endswith(wanted.suffix)


def peer_names(certificate: dict[str, Any] | None) -> list[str]:
    """The subject alternative names of a certificate as `ssl` describes it; empty without one."""
    return [value for _, value in (certificate or {}).get("subjectAltName", ())]


# -- contexts ----------------------------------------------------------------------------------------------------------


def _server_context(spec: DownstreamTls, certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[spec.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    if spec.alpn:
        context.set_alpn_protocols(list(spec.alpn))
    if spec.client_ca is not None:
        load_authorities(context, spec.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if spec.require_client_certificate else ssl.CERT_OPTIONAL
    load_certificate(context, certificate)
    return context


def _client_context(spec: UpstreamTls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _VERSIONS[spec.min_version]
    context.check_hostname = spec.verify and not spec.match_san
    if not spec.verify:
        context.verify_mode = ssl.CERT_NONE
    elif spec.ca is not None:
        load_authorities(context, spec.ca)
    else:
        context.load_default_certs()
    if spec.alpn:
        context.set_alpn_protocols(list(spec.alpn))
    if spec.certificate is not None:
        load_certificate(context, spec.certificate)
    return context


def load_authorities(context: ssl.SSLContext, path: str) -> None:
    """Trust the authorities of a file.

    Raises:
        OperatorError: there are none in it.
    """
    _read(path)
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError) as error:
        raise OperatorError(f"{path}: expected certificates in PEM: {words_of(error)}") from None


def load_certificate(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Show this certificate.

    Raises:
        OperatorError: a file is not there or holds something else, or the two do not belong together.
    """
    _read(certificate.cert)
    _read(certificate.key)
    try:
        context.load_cert_chain(certificate.cert, certificate.key, password=_no_passphrase)
    except _EncryptedError:
        raise OperatorError(
            f"{certificate.key}: the key is encrypted: expected one without a passphrase (openssl pkey -in OLD -out NEW)"
        ) from None
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            raise OperatorError(
                f"{certificate.key} is not the key of {certificate.cert}: expected the two files of one pair"
            ) from None
        raise OperatorError(
            f"{certificate.cert}, {certificate.key}: expected a certificate and its key in PEM: {words_of(error)}"
        ) from None


class _EncryptedError(Exception):
    """A key that asks for a passphrase."""


def _no_passphrase() -> str:
    raise _EncryptedError


def _read(path: str) -> bytes:
    try:
        return read_file(Path(path))
    except OperatorError as error:
        raise OperatorError(f"{path}: {error.message}") from None


def words_of(error: BaseException) -> str:
    """Why a handshake or a file failed, in OpenSSL's words without its codes and places."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    reason: str | None = getattr(error, "reason", None)  # only what OpenSSL raised has one
    if isinstance(error, ssl.SSLError) and reason:
        return reason.lower().replace("_", " ")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# -- what a certificate says -------------------------------------------------------------------------------------------


def inspect(certificate: Certificate, *, client: bool = False) -> CertificateInfo:
    """What a certificate says, read by a handshake in memory with a peer that trusts it alone, whatever its dates.

    The standard library describes only certificates of peers. So this also shows that certificate and key work, for a
    server or a client.

    Raises:
        OperatorError: they do not.
    """
    found = _PEM.search(_read(certificate.cert))
    if found is None:
        raise OperatorError(f"{certificate.cert}: expected a certificate in PEM")
    sides = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for side in sides:
        side.check_hostname = False
        side.verify_mode = ssl.CERT_NONE
        load_certificate(side, certificate)
    peer = sides[0] if client else sides[1]
    peer.verify_mode = ssl.CERT_REQUIRED
    peer.verify_flags = ssl.VerifyFlags(peer.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
    try:
        peer.load_verify_locations(cadata=found[0].decode("ascii", "replace"))
        described = _handshake(*sides, client_is_shown=client)
    except (ssl.SSLError, ValueError) as error:
        raise OperatorError(f"{certificate.cert}: cannot be used: {words_of(error)}") from None
    names = tuple(value.lower() for kind, value in described.get("subjectAltName", ()) if kind == "DNS")
    return CertificateInfo(certificate.cert, names, ssl.cert_time_to_seconds(described["notAfter"]))


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, *, client_is_shown: bool) -> dict[str, Any]:
    """The certificate of one side as the other sees it."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    waiting = list(ends)
    for _ in range(_ROUNDS):
        for end in tuple(waiting):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
    return ends[client_is_shown].getpeercert() or {}


# -- for the configuration ---------------------------------------------------------------------------------------------


def file_faults(config: ProxyConfig) -> Iterator[tuple[Place, str]]:
    """What is wrong with the files that a configuration names, each at the place that names it."""
    for number, listener in enumerate(config.listeners):
        if listener.tls is not None:
            place: Place = ("listeners", number, "tls")
            pairs = [
                ((*place, "certificates", at), each) for at, each in enumerate(listener.tls.certificates)
            ]
            yield from _faults(place, listener.tls.client_ca, "client_ca", pairs, client=False)
    for number, cluster in enumerate(config.clusters):
        if cluster.tls is not None:
            place = ("clusters", number, "tls")
            own = cluster.tls.certificate
            pairs = [((*place, "certificate"), own)] if own is not None else []
            yield from _faults(place, cluster.tls.ca, "ca", pairs, client=True)


def _faults(
    place: Place,
    authorities: str | None,
    key: str,
    pairs: Sequence[tuple[Place, Certificate]],
    *,
    client: bool,
) -> Iterator[tuple[Place, str]]:
    for at, certificate in pairs:
        try:
            inspect(certificate, client=client)
        except OperatorError as error:
            yield at, error.message
    if authorities is not None:
        try:
            load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), authorities)
        except OperatorError as error:
            yield (*place, key), error.message


def files_of(config: ProxyConfig) -> list[str]:
    """The files that a configuration names, each once."""
    found: list[str | None] = []
    for listener in config.listeners:
        if listener.tls is not None:
            found += [path for each in listener.tls.certificates for path in (each.cert, each.key)]
            found.append(listener.tls.client_ca)
    for cluster in config.clusters:
        if cluster.tls is not None:
            own = cluster.tls.certificate
            found += [cluster.tls.ca, *((own.cert, own.key) if own is not None else ())]
    return [path for path in dict.fromkeys(found) if path is not None]


def certificates_of(config: ProxyConfig) -> list[CertificateInfo]:
    """What the certificates of a configuration say, each once.

    Raises:
        OperatorError: one of them is of no use.
    """
    found = {}
    for listener in config.listeners:
        for each in listener.tls.certificates if listener.tls is not None else ():
            found[each] = inspect(each)
    for cluster in config.clusters:
        if cluster.tls is not None and cluster.tls.certificate is not None:
            own = cluster.tls.certificate
            found[own] = found.get(own) or inspect(own, client=True)
    return list(found.values())
