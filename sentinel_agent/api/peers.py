"""Several agents behind one URL: what Grafana asks of this one is also asked of the peers that the settings list.

Each peer answers for itself only (`PEER_HEADER`), so lists may name each other. All are asked at once, each within a few seconds.
One that fails is left out, which is said in a header of the answer, in the log and at `/api/v1/peers`, and is not asked again for a
while. What a peer answers is as little trusted as what a client sends: it is bounded and checked.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from sentinel_agent.api import messages
from sentinel_agent.api.connect import PROTO
from sentinel_agent.api.replies import MERGES, merge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sentinel_agent.api.work import Workers
    from sentinel_agent.clock import Clock
    from sentinel_agent.config.settings import ApiSettings

log = logging.getLogger(__name__)

PEER_HEADER = "Sentinel-Peer"
MISSING_HEADER = "Sentinel-Missing-Peers"
SECONDS = 5.0
PAUSE = 10.0
_ANSWER_BYTES = 16 * 1024**2
_ENTRIES = 200_000


@dataclass(slots=True)
class Peer:
    """One peer: why it last failed (empty: it did not), and until when it is left alone (monotonic seconds)."""

    url: str
    trouble: str = ""
    rests_until: float = 0.0
    answered: int = 0
    failed: int = 0

    def document(self) -> dict[str, Any]:
        """What is told of it."""
        return {"url": self.url, "trouble": self.trouble, "answered": self.answered, "failed": self.failed}


class _PeerError(Exception):
    """A peer that did not answer as it should; the message is a few words of ours."""


class Peers:
    """The peers of one agent. Usable within one event loop."""

    def __init__(self, settings: ApiSettings, clock: Clock) -> None:
        self.all = tuple(Peer(url.rstrip("/")) for url in settings.peers)
        self._token = settings.peer_token
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self, method: str, request: messages.Message, reply: messages.Message, values: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """The replies of those that answer, and who did not (`URL (why)`). Never raises but when it is cancelled."""
        if not self.all or method not in MERGES:
            return [], []
        body = messages.encode(request, values, json=False)
        answers = await asyncio.gather(*(self._ask(peer, method, body, reply) for peer in self.all))
        missing = [
            f"{peer.url} ({peer.trouble})"
            for peer, answer in zip(self.all, answers, strict=True)
            if answer is None
        ]
        return [answer for answer in answers if answer is not None], missing

    async def close(self) -> None:
        """Give up the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(
        self, peer: Peer, method: str, body: bytes, reply: messages.Message
    ) -> dict[str, Any] | None:
        if peer.trouble and self._clock.monotonic() < peer.rests_until:
            return None
        try:
            async with asyncio.timeout(SECONDS):
                data = await self._post(f"{peer.url}/querier.v1.QuerierService/{method}", body)
            found = await asyncio.to_thread(messages.decode, reply, data, json=False, most=_ENTRIES)
        except TimeoutError:
            self._failed(peer, f"no answer within {SECONDS:.0f} s")
        except aiohttp.ClientError as error:
            self._failed(
                peer, "not connected" if isinstance(error, aiohttp.ClientConnectorError) else "no answer"
            )
        except _PeerError as error:
            self._failed(peer, str(error))
        except ValueError:
            self._failed(peer, "its answer is not understood")
        else:
            if peer.trouble:
                log.warning("peer %s answers again", peer.url)
            peer.trouble = ""
            peer.answered += 1
            return found
        return None

    async def _post(self, url: str, body: bytes) -> bytes:
        headers = {"Content-Type": PROTO, PEER_HEADER: "1"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._session is None:
            self._session = aiohttp.ClientSession()
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                raise _PeerError(f"HTTP status {answer.status}")
            data = bytearray()
            async for chunk in answer.content.iter_any():
                data += chunk
                if len(data) > _ANSWER_BYTES:
                    raise _PeerError("its answer is too large")
            return bytes(data)

    def _failed(self, peer: Peer, why: str) -> None:
        if peer.trouble != why:
            log.warning("peer %s is left out of answers: %s", peer.url, why)
        peer.trouble = why
        peer.failed += 1
        peer.rests_until = self._clock.monotonic() + PAUSE


async def merged(
    workers: Workers,
    method: str,
    request: Mapping[str, Any],
    own: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
) -> tuple[Mapping[str, Any], list[str]]:
    """Our reply and the others' as one; where they cannot be one, ours alone, and why."""
    if not others:
        return own, []
    try:
        return await workers.merge(merge, method, request, [own, *others]), []
    except (ValueError, LookupError, OverflowError) as error:
        log.warning("the answers of peers cannot be merged: %s", error)
        return own, ["all peers (an answer contradicts itself)"]
