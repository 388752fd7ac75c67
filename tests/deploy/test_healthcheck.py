"""The health check of the image: what listens must answer, and what does not listen may be waiting."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.e2e.support import free_port

HEALTHCHECK = Path(__file__).resolve().parents[2] / "deploy" / "healthcheck"


def checked(address: str) -> subprocess.CompletedProcess[str]:
    """With the options that its first line has."""
    options = HEALTHCHECK.read_text().splitlines()[0].partition(" ")[2]
    return subprocess.run(
        [sys.executable, options, str(HEALTHCHECK)],
        env={"SENTINEL_LISTEN": address},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"HTTP/1.1 200 OK\r\n\r\n", 0), (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 1), (b"", 1)],
)
def test_what_listens_must_answer_200(answer: bytes, status: int) -> None:
    """Another answer fails, and so does none."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(1000).startswith(b"GET /healthz ")
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = checked(f"0.0.0.0:{server.getsockname()[1]}")
        thread.join(30)
    assert done.returncode == status, done


@pytest.mark.parametrize("address", [f"127.0.0.1:{free_port()}", "off"])
def test_what_does_not_listen_is_left_alone(address: str) -> None:
    """Ending it would mend nothing."""
    done = checked(address)
    assert done.returncode == 0, done
    assert "does not listen" in done.stdout
