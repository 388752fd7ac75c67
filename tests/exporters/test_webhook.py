"""Webhooks: one signed request an incident, which the reference verifier of Standard Webhooks accepts."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from sentinel_agent.clock import SystemClock
from sentinel_agent.core.event import IncidentLost, IncidentOpened, IncidentSealed, TargetGone
from sentinel_agent.core.model import Incident
from sentinel_agent.errors import OperatorError
from sentinel_agent.export.base import ExporterContext
from sentinel_exporters.webhook import Options, WebhookExporter, key_of
from tests.export.support import NOW, TARGET
from tests.exporters.support import incident, options, oracle, serving

if TYPE_CHECKING:
    from tests.exporters.support import Request

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
SCRIPT = Path(__file__).parent / "oracle_env" / "standard_webhook.py"


def made(url: str, **changes: Any) -> WebhookExporter:
    return WebhookExporter(
        options(Options, url=url, **changes), ExporterContext("hook", SystemClock(), "1.2.3", "h")
    )


def verdict(request: Request, secret: str = SECRET) -> str:
    """What the reference verifier says of a request."""
    document = {"secret": secret, "headers": request.headers, "body": request.body.decode()}
    done = subprocess.run(
        [oracle(), SCRIPT], input=json.dumps(document), capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


async def test_the_reference_verifier_accepts_it() -> None:
    """And refuses it once a byte of the body or the secret is another."""
    async with serving() as server:
        exporter = made(server.url, secret=SECRET)
        body = exporter.encode("events", [IncidentSealed(NOW, incident(), "folder")])
        assert body is not None
        assert await exporter.send("events", body) == "202 Accepted"
        await exporter.close()
    (request,) = server.requests
    assert verdict(request) == "verified"
    assert verdict(request, "whsec_" + base64.b64encode(b"x" * 24).decode()).startswith("refused")
    request.body = request.body.replace(b"cpu", b"gpu", 1)
    assert verdict(request).startswith("refused")


async def test_the_document_is_the_incident() -> None:
    """`data` is `incident.json`; the id stays the same at each retry, the time of the signature does not matter for it."""
    sealed = incident()
    async with serving() as server:
        exporter = made(server.url, token="t")
        body = exporter.encode("events", [IncidentSealed(NOW, sealed, "folder")])
        assert body is not None
        await exporter.send("events", body)
        await exporter.send("events", body)
        await exporter.close()
    first, second = server.requests
    found = json.loads(first.body)
    assert msgspec.convert(found["data"], Incident) == sealed
    assert found["type"] == "sentinel.incident.sealed"
    assert datetime.datetime.fromisoformat(found["timestamp"]).timestamp() == NOW
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == found["id"]
    assert "webhook-signature" not in first.headers  # no secret, no signature
    assert first.headers["authorization"] == "Bearer t"


def test_only_what_is_wanted_is_told() -> None:
    """By default sealed incidents; others by name, each with its target and a sentence."""
    lost, gone = IncidentLost(NOW, "cpu-spike", TARGET, "disk full"), TargetGone(NOW, TARGET, "ended")
    usual = made("http://127.0.0.1:1")
    assert usual.encode("events", [lost]) is None
    assert usual.encode("events", [IncidentOpened(NOW, "id", "r", TARGET, "s")]) is None
    more = made("http://127.0.0.1:1", events=["incident.lost", "target.gone"])
    bodies = [more.encode("events", [each]) for each in (lost, gone)]
    documents = [json.loads(body) for body in bodies if body is not None]
    assert [each["data"]["summary"] for each in documents] == [
        "cpu-spike fired and nothing was kept: disk full",
        "gateway/host-1/main ended",
    ]
    assert documents[0]["data"]["target"]["pid"] == TARGET.pid
    assert documents[0]["id"] != documents[1]["id"]


@pytest.mark.parametrize(
    ("secret", "what"),
    [
        ("short", "found 5"),
        ("whsec_!!!", "base64"),
        ("x" * 65, "found 65"),
        ("whsec_" + "AAAA" * 3, "found 9"),
    ],
)
def test_a_secret_that_protects_nothing_is_refused(secret: str, what: str) -> None:
    """The message says what is wrong and never shows the secret."""
    with pytest.raises(OperatorError, match=what) as raised:
        key_of(secret)
    assert secret not in raised.value.message
