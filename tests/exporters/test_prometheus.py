"""The page for Prometheus: names, units, labels, exemplars, bounds; read by prometheus_client's own parsers."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from prometheus_client import Histogram
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from sentinel_agent.core.event import IncidentSealed, LimitReached, TargetAppeared, TargetGone
from sentinel_agent.core.model import Role, TargetId
from sentinel_agent.export.base import (
    DURATION_BOUNDS,
    AgentReading,
    ClusterReading,
    ExporterContext,
    ReadingSet,
    RequestDelta,
)
from sentinel_agent.testing import FakeClock, make_target
from sentinel_exporters.prometheus import Options, PrometheusExporter
from tests.export.support import NOW, TARGET, group, readings, span
from tests.exporters.support import incident

if TYPE_CHECKING:
    from prometheus_client.core import Metric

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def view(**options: Any) -> PrometheusExporter:
    return PrometheusExporter(Options(**options), ExporterContext("prometheus", FakeClock(), "1.2.3", "host"))


def page(made: PrometheusExporter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the classic text, by name and labels."""
    content_type, text = made.render(None)
    assert content_type.startswith("text/plain")
    parse: Any = text_string_to_metric_families
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


def families(made: PrometheusExporter) -> dict[str, Metric]:
    content_type, text = made.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    parse: Any = openmetrics.text_string_to_metric_families
    return {family.name: family for family in parse(text.decode())}


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


WHO = {"target": "gateway/host-1/main", "service": "gateway"}


def test_readings_are_gauges_in_base_units() -> None:
    """Percentages are ratios, the unit is in the name, and the only labels are target and service."""
    made = view()
    made.observe(readings(cpu=250.0, rss=1e9, tasks=17.0, io_read=5.0, ctx_voluntary=3.0, odd_one=2.0))
    found = page(made)
    assert found[key("sentinel_target_cpu_ratio", **WHO)] == 2.5
    assert found[key("sentinel_target_rss_bytes", **WHO)] == 1e9
    assert found[key("sentinel_target_tasks", **WHO)] == 17
    assert found[key("sentinel_target_io_read_bytes_per_second", **WHO)] == 5
    assert found[key("sentinel_target_ctx_voluntary_per_second", **WHO)] == 3
    assert found[key("sentinel_target_odd_one", **WHO)] == 2
    assert found[key("sentinel_target_up", **WHO)] == 1


def test_cpu_seconds_add_up_and_skip_what_was_not_watched() -> None:
    """The counter is the integral of the readings; a gap of minutes is not filled with the last value."""
    made = view()
    for second in range(5):
        made.observe(readings(NOW + second, cpu=50.0))
    made.observe(readings(NOW + 1000, cpu=50.0))
    assert page(made)[key("sentinel_target_cpu_seconds_total", **WHO)] == pytest.approx(2.0)


def test_a_reused_pid_and_a_restart_are_another_process() -> None:
    """A new process in the role starts its counters again; a late reading of the old one changes nothing."""
    made = view()
    made.observe(readings(NOW, cpu=100.0))
    made.observe(readings(NOW + 1, cpu=100.0))
    again = make_target(TargetId(TARGET.pid, TARGET.start_time + 5), TARGET.role)
    made.observe(TargetAppeared(NOW + 2, again))
    made.observe(ReadingSet(NOW + 3, TARGET, {"cpu": 77.0}))
    made.observe(ReadingSet(NOW + 3, again, {"cpu": 1.0}))
    made.observe(TargetGone(NOW + 4, TARGET, "ended"))
    found = page(made)
    assert found[key("sentinel_target_cpu_ratio", **WHO)] == 0.01
    assert found[key("sentinel_target_cpu_seconds_total", **WHO)] == 0
    assert found[key("sentinel_target_up", **WHO)] == 1


def test_a_target_that_is_gone_is_down_then_forgotten() -> None:
    """`up` goes to 0 and its gauges vanish, so no stale value is taken for a live one."""
    made = view()
    made.observe(readings(NOW, cpu=1.0))
    made.observe(TargetGone(NOW + 1, TARGET, "ended"))
    found = page(made)
    assert found[key("sentinel_target_up", **WHO)] == 0
    assert key("sentinel_target_cpu_ratio", **WHO) not in found
    made.observe(AgentReading(NOW + 1000, {}))
    assert key("sentinel_target_up", **WHO) not in page(made)


def test_requests_are_histograms_with_the_trace_as_exemplar() -> None:
    """OpenMetrics links a bucket to the newest trace in it; an unsampled trace, which no one stored, is not linked."""
    made = view()
    for number in range(1, 4):
        made.observe(group(number))
    made.observe((span(9, duration=10**9, sampled=False),))
    found = families(made)["sentinel_http_server_request_duration_seconds"]
    samples = {(each.name, each.labels.get("le")): each for each in found.samples}
    name = "sentinel_http_server_request_duration_seconds"
    assert samples[f"{name}_count", None].value == 4
    assert samples[f"{name}_sum", None].value == pytest.approx(1.0045)
    assert samples[f"{name}_bucket", "0.005"].value == 3
    exemplar = samples[f"{name}_bucket", "0.005"].exemplar
    assert exemplar is not None
    assert exemplar.labels == {"trace_id": f"{3:032x}"}
    assert samples[f"{name}_bucket", "1.0"].exemplar is None
    assert samples[f"{name}_bucket", "1.0"].labels["code"] == "2xx"
    peers = {
        each.labels["peer"]
        for each in families(made)["sentinel_http_client_request_duration_seconds"].samples
    }
    assert peers == {"orders"}


def test_the_health_of_the_proxys_clusters_is_shown_while_it_is_fresh() -> None:
    """The newest reading of each; half a minute after the last there is none."""
    made = view()
    for healthy in (3, 2):
        servers = (("a:1", True), ("b:1", healthy == 3))
        made.observe(ClusterReading(NOW, "gateway", "h", "back", 3, healthy, healthy == 2, servers))
    found = page(made)
    where = {"service": "gateway", "cluster": "back"}
    assert found[key("sentinel_proxy_cluster_endpoints", **where, state="healthy")] == 2
    assert found[key("sentinel_proxy_cluster_endpoints", **where, state="unhealthy")] == 1
    assert found[key("sentinel_proxy_cluster_panic", **where)] == 1
    assert found[key("sentinel_proxy_endpoint_healthy", **where, endpoint="a:1")] == 1
    assert found[key("sentinel_proxy_endpoint_healthy", **where, endpoint="b:1")] == 0
    made.observe(AgentReading(NOW + 31, {}))
    assert key("sentinel_proxy_cluster_panic", **where) not in page(made)


def test_every_request_of_the_proxy_is_counted() -> None:
    """Differences of several workers add up; the newest sampled trace of a bucket is its exemplar."""
    made = view()
    buckets = [0] * 15
    buckets[0], buckets[14] = 98, 2
    for since in (NOW, NOW + 1):
        made.observe(
            RequestDelta(
                since + 1,
                since,
                "gateway",
                "h",
                "web",
                "all",
                (0, 0, 90, 0, 0, 10),
                tuple(buckets),
                31.0,
                "back",
            )
        )
    attributes = {"http.response.status_code": 200, "http.route": "all", "sentinel.listener": "web"}
    attributes["sentinel.cluster"] = "back"
    made.observe((span(7, attributes=attributes),))
    found = page(made)
    where = {"service": "gateway", "listener": "web", "route": "all", "cluster": "back"}
    assert found[key("sentinel_proxy_requests_total", **where, code="2xx")] == 180
    assert found[key("sentinel_proxy_requests_total", **where, code="5xx")] == 20
    assert found[key("sentinel_proxy_request_duration_seconds_count", **where)] == 200
    assert found[key("sentinel_proxy_request_duration_seconds_sum", **where)] == 62
    assert found[key("sentinel_proxy_request_duration_seconds_bucket", **where, le="10.0")] == 196
    samples = families(made)["sentinel_proxy_request_duration_seconds"].samples
    (linked,) = [each for each in samples if each.exemplar]
    assert linked.exemplar is not None
    assert (linked.labels["le"], linked.exemplar.labels) == ("0.005", {"trace_id": f"{7:032x}"})


def test_an_incident_is_counted_and_linked() -> None:
    """The counter's exemplar names the incident; a stalled loop's incident is also in the bucket of its value."""
    made = view()
    sealed = incident(metric="loop_stall", value=1.7, rule="stall")
    made.observe(readings(NOW, loop_stall=1.7))
    made.observe(IncidentSealed(NOW + 1, sealed, "folder"))
    made.observe(LimitReached(NOW + 2, "stall", TARGET))
    found = families(made)
    (total,) = [each for each in found["sentinel_incidents"].samples if each.name.endswith("_total")]
    assert (total.value, total.labels) == (1, {"rule": "stall", "target": WHO["target"]})
    assert total.exemplar is not None
    assert total.exemplar.labels == {"incident_id": sealed.id}
    stalls = found["sentinel_target_loop_stalls_seconds"].samples
    (linked,) = [each for each in stalls if each.exemplar]
    assert linked.labels["le"] == "2.5"
    assert (
        page(made)[key("sentinel_incident_last_timestamp_seconds", rule="stall", target=WHO["target"])] == NOW
    )
    assert page(made)[key("sentinel_rule_limits_reached_total", rule="stall", target=WHO["target"])] == 1


def test_the_agent_itself() -> None:
    """Its cost, its lateness, the states of rules, the recorder's results and every loss of every exporter."""
    made = view()
    values = {"cpu_ratio": 0.004, "rss_bytes": 3e7, "lateness_seconds": 0.001, "samples_whole": 90.0}
    made.observe(
        AgentReading(
            NOW, values, (("cpu-spike", WHO["target"], "pending"),), (("otlp", "spans", "spool_full", 7),)
        )
    )
    found = page(made)
    assert found[key("sentinel_self_cpu_ratio")] == 0.004
    assert found[key("sentinel_self_rss_bytes")] == 3e7
    assert found[key("sentinel_sampler_lateness_seconds")] == 0.001
    assert found[key("sentinel_recorder_samples_total", result="whole")] == 90
    assert found[key("sentinel_rule_state", rule="cpu-spike", target=WHO["target"], state="pending")] == 1
    assert (
        found[key("sentinel_export_dropped_total", exporter="otlp", signal="spans", reason="spool_full")] == 7
    )
    assert found[key("sentinel_agent_info", version="1.2.3")] == 1
    assert found[key("process_cpu_seconds_total")] > 0


def test_no_identifier_is_a_label() -> None:
    """No pid, path, trace id or incident id is among the labels of any series, whatever was observed."""
    made = view()
    made.observe(readings())
    made.observe(group(7))
    made.observe(IncidentSealed(NOW, incident(), "folder"))
    text = made.render(None)[1].decode()
    for secret in (str(TARGET.pid), "/orders", f"{7:032x}", incident().id):
        assert secret not in text


def test_series_are_bounded_and_what_is_left_out_is_counted() -> None:
    """A fleet of targets and peers cannot blow the page up, and the page says what it lacks."""
    made = view(max_series=200)
    for number in range(100):
        target = make_target(TargetId(number + 1, 5), Role("svc", f"host-{number}"))
        made.observe(ReadingSet(NOW, target, {f"metric_{index}": 1.0 for index in range(50)}))
        made.observe((span(1, service=f"svc-{number}"),))
    found = page(made)
    ours = [name for name, _ in found if name.startswith("sentinel_")]
    assert len(ours) <= 201
    assert found[key("sentinel_metrics_left_out_total")] >= 90 + 97


def test_names_from_a_hostile_target_cannot_break_the_page() -> None:
    """Quotes, line breaks and backslashes in a service's name come back as they were."""
    made = view()
    name = 'a"b\\c\nd'
    target = make_target(TargetId(1, 1), Role(name, "host"))
    made.observe(ReadingSet(NOW, target, {"cpu": math.inf}))
    made.observe(IncidentSealed(NOW, msgspec.structs.replace(incident(), rule=name), "folder"))
    assert page(made)[key("sentinel_target_up", target=f"{name}/host/main", service=name)] == 1
    assert families(made)


def test_observing_while_rendering() -> None:
    """The page is made in a thread while the agent ticks on; neither disturbs the other."""
    made = view()
    stop = threading.Event()

    def tick() -> None:
        number = 0
        while not stop.is_set() and number < 20_000:
            number += 1
            target = make_target(TargetId(number % 50 + 1, 5), Role("svc", f"host-{number % 50}"))
            made.observe(ReadingSet(NOW + number, target, {"cpu": 1.0, f"m{number % 7}": 2.0}))
            made.observe(group(number))

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        for _ in range(20):
            made.render(OPENMETRICS)
    finally:
        stop.set()
        thread.join(30)


def test_buckets_are_those_of_opentelemetry() -> None:
    """A dashboard made for http.server.request.duration fits: prometheus_client's defaults are the same."""
    assert (*DURATION_BOUNDS, math.inf) == Histogram.DEFAULT_BUCKETS
