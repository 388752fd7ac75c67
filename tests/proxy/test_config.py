"""The proxy's configuration: what is taken, and every fault with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sentinel_agent.errors import ConfigError
from sentinel_agent.proxy.config import load_proxy, parse_proxy

if TYPE_CHECKING:
    from pathlib import Path

GOOD = b"""
listeners:
  - name: web
    address: 127.0.0.1:8080
    routes:
      - name: api
        match: {prefix: /api, hosts: [a.example, "*.b.example"], methods: [GET]}
        clusters: [{name: back, weight: 9}, {name: other}]
        timeout: 3s
        retry: {attempts: 2, on: [connect, 5xx]}
        filters: [{name: fault, config: {delay: {fixed: 2s}}}]
      - {name: rest, response: {status: 404}}
  - {name: raw, address: "127.0.0.1:8081", protocol: tcp, cluster: back}
clusters:
  - name: back
    endpoints: [{address: "127.0.0.1:9000"}, {address: "localhost:9001", weight: 3}]
    load_balancer: least_request
  - {name: other, endpoints: [{address: "127.0.0.1:9002"}]}
access_log: {path: "-"}
"""


def test_a_configuration_is_read() -> None:
    """Written forms of durations, defaults for what is left out."""
    config = parse_proxy("p.yaml", GOOD)
    route = config.listeners[0].routes[0]
    assert route.timeout == 3.0
    assert route.retry.on == ("connect", "5xx")
    assert route.filters[0].config == {"delay": {"fixed": "2s"}}
    assert config.clusters[0].endpoints[1].weight == 3
    assert config.tracing.sampling == 1.0


def faults(text: bytes) -> dict[str, str]:
    """Path -> message of every fault."""
    with pytest.raises(ConfigError) as caught:
        parse_proxy("p.yaml", text)
    return {fault.path: fault.message for fault in caught.value.faults}


def test_every_fault_is_named_at_once_with_its_line() -> None:
    """Of names that do not exist, of doubles, of choices that exclude each other."""
    found = faults(b"""
listeners:
  - name: web
    address: 127.0.0.1:8080
    routes:
      - {name: a, match: {prefix: /a, exact: /b}, cluster: bakc}
      - {name: a, cluster: back, response: {status: 200}}
      - {name: b}
      - {name: c, clusters: [{name: back, weight: 0}], prefix_rewrite: /x}
      - {name: d, cluster: back, request_headers: {set: {"x y": z, Content-Length: "3", ok: "a\\u2028"}}}
      - {name: e, cluster: back, regex_rewrite: {pattern: /a, substitution: '\\2'}}
      - {name: f, cluster: back, match: {headers: [{name: x, exact: a, prefix: b}]}}
  - {name: web, address: "127.0.0.1:8080", protocol: tcp}
  - {name: t, address: "127.0.0.1:8081", protocol: tcp, cluster: back, routes: [{name: x, cluster: back}]}
  - {name: h, address: "127.0.0.1:8082", cluster: back}
clusters:
  - {name: back, endpoints: []}
""")
    assert found["listeners[0].routes[0].cluster"] == "there is no cluster 'bakc': did you mean `back`?"
    assert set(found) == {
        "listeners[1].name",
        "listeners[1].address",
        "clusters[0].endpoints",
        "listeners[0].routes[1].name",
        "listeners[0].routes[0].cluster",
        "listeners[0].routes[0].match",
        "listeners[0].routes[1]",
        "listeners[0].routes[2]",
        "listeners[0].routes[3].clusters",
        "listeners[0].routes[3].prefix_rewrite",
        'listeners[0].routes[4].request_headers.set."x y"',
        "listeners[0].routes[4].request_headers.set.ok",
        "listeners[0].routes[4].request_headers",
        "listeners[0].routes[5].regex_rewrite.substitution",
        "listeners[0].routes[6].match.headers[0]",
        "listeners[1].cluster",
        "listeners[2].routes",
        "listeners[3].cluster",
        "listeners[3].routes",
    }


def test_faults_of_values_come_with_their_words() -> None:
    """The decoder of the agent's settings speaks."""
    found = faults(b"listeners: [{name: '!', adress: x, address: nowhere}]\nclusters: 3\n")
    assert set(found) >= {"listeners[0].name", "listeners[0].adress", "listeners[0].address", "clusters"}


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """Missing, empty, no YAML; never a traceback."""
    for content in (None, b"", b"\0", b"a: [", b"- 1"):
        path = tmp_path / "p.yaml"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError):
            load_proxy(path)
