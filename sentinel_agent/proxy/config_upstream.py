"""The part of the configuration that says which servers of a cluster are sent requests: health, ejection, subsets, marks.

In Envoy's words (config.core.v3.HealthCheck, config.cluster.v3.OutlierDetection, Cluster.LbSubsetConfig).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sentinel_agent.core.units import Duration
from sentinel_agent.proxy.config_types import FieldName, Labels, Path_, Text


class HttpHealthCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GET whose status tells."""

    path: Path_
    host: Annotated[Text | None, Meta(description="the Host of the request; unset: the server's address")] = (
        None
    )
    expected_statuses: Annotated[
        tuple[Annotated[int, Meta(ge=200, le=599)], ...], Meta(min_length=1, max_length=50)
    ] = (200,)


class TcpHealthCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A connection that comes about."""


class HealthCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How each worker asks every server whether it is well: `http_health_check` or `tcp_health_check`."""

    http_health_check: HttpHealthCheck | None = None
    tcp_health_check: TcpHealthCheck | None = None
    timeout: Annotated[Duration, Meta(gt=0, le=60)] = 1.0
    interval: Annotated[Duration, Meta(ge=0.1, le=3600)] = 15.0
    interval_jitter: Annotated[
        Duration, Meta(ge=0, le=3600, description="added to `interval`, at random")
    ] = 0.5
    unhealthy_threshold: Annotated[
        int, Meta(ge=1, le=100, description="failures in a row until it is out")
    ] = 2
    healthy_threshold: Annotated[int, Meta(ge=1, le=100, description="successes in a row until it is in")] = 1


class OutlierDetection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a server is out because its requests fail more often than those of the cluster.

    A failure is a 5xx, a connection that did not come about or broke, and silence.
    """

    interval: Annotated[
        Duration, Meta(ge=0.5, le=3600, description="a window in which requests are counted")
    ] = 10.0
    request_volume: Annotated[
        int, Meta(ge=1, le=1_000_000, description="fewer requests of a server in a window tell nothing")
    ] = 10
    exception_rate_multiple: Annotated[
        float, Meta(ge=1, le=100, description="its share of failures over that of the cluster")
    ] = 1.5
    failure_percentage_threshold: Annotated[
        float, Meta(ge=0, le=100, description="a smaller share of failures is never reason enough")
    ] = 20.0
    base_ejection_time: Annotated[
        Duration, Meta(gt=0, le=86400, description="how long it is out, times how often it was of late")
    ] = 30.0
    max_ejection_time: Annotated[Duration, Meta(gt=0, le=86400)] = 300.0
    max_ejection_percent: Annotated[
        int, Meta(ge=1, le=100, description="servers that may be out at once, but one of several always may")
    ] = 10


class LbSubsetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens where no server has the labels of a `metadata_match`, or none of these is usable."""

    fallback_policy: Literal["no_fallback", "any_endpoint", "default_subset"] = "any_endpoint"
    default_subset: Annotated[Labels, Meta(description="for `default_subset`")] = {}


class Coloring(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the mark of a request is: in a header of its own, or a member of the W3C header `baggage`."""

    header: FieldName | None = None
    baggage: FieldName | None = None
