"""Runs in an environment with apache-skywalking 1.2.0: the official messages and grpcio as a judge of our bytes.

`decode MESSAGE` reads hex from stdin, one message a line, and prints each as JSON; `parse MESSAGE` reads messages as JSON
and prints each as `decode` does. `serve` listens with grpcio, prints
its port, and when its input ends prints every message that it got as JSON, with method and metadata, one a line; with `quiet` it
forgets them.
"""

from __future__ import annotations

import json
import sys
from concurrent import futures

import grpc
from google.protobuf.json_format import MessageToDict, Parse
from skywalking.protocol.common import Command_pb2
from skywalking.protocol.event import Event_pb2, Event_pb2_grpc
from skywalking.protocol.language_agent import Meter_pb2, Meter_pb2_grpc, Tracing_pb2, Tracing_pb2_grpc
from skywalking.protocol.logging import Logging_pb2
from skywalking.protocol.management import Management_pb2, Management_pb2_grpc

MESSAGES = {
    "SegmentCollection": Tracing_pb2.SegmentCollection,
    "SegmentObject": Tracing_pb2.SegmentObject,
    "MeterDataCollection": Meter_pb2.MeterDataCollection,
    "Event": Event_pb2.Event,
    "LogData": Logging_pb2.LogData,
    "InstanceProperties": Management_pb2.InstanceProperties,
    "InstancePingPkg": Management_pb2.InstancePingPkg,
}


def plain(message):
    return MessageToDict(message, always_print_fields_with_no_presence=True)


GOT = []


def say(method, context, message):
    if sys.argv[2:] == ["quiet"]:
        return
    GOT.append({"method": method, "metadata": dict(context.invocation_metadata()), "message": plain(message)})


def stream(method):
    def handle(self, messages, context):
        for message in messages:
            say(method, context, message)
        return Command_pb2.Commands()

    return handle


def single(method):
    def handle(self, message, context):
        say(method, context, message)
        return Command_pb2.Commands()

    return handle


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(4))
    for servicer, add, methods in (
        (
            Tracing_pb2_grpc.TraceSegmentReportServiceServicer,
            Tracing_pb2_grpc.add_TraceSegmentReportServiceServicer_to_server,
            {"collect": stream("segment"), "collectInSync": single("segments")},
        ),
        (
            Meter_pb2_grpc.MeterReportServiceServicer,
            Meter_pb2_grpc.add_MeterReportServiceServicer_to_server,
            {"collectBatch": stream("meters")},
        ),
        (
            Event_pb2_grpc.EventServiceServicer,
            Event_pb2_grpc.add_EventServiceServicer_to_server,
            {"collect": stream("event")},
        ),
        (
            Management_pb2_grpc.ManagementServiceServicer,
            Management_pb2_grpc.add_ManagementServiceServicer_to_server,
            {"reportInstanceProperties": single("properties"), "keepAlive": single("ping")},
        ),
    ):  # the logs' handler is off, as it may be in a real server
        add(type("Servicer", (servicer,), methods)(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0)
    for each in GOT:
        print(json.dumps(each))


def main():
    if sys.argv[1] == "serve":
        serve()
        return
    kind = MESSAGES[sys.argv[2]]
    for line in sys.stdin:
        message = (
            Parse(line, kind()) if sys.argv[1] == "parse" else kind.FromString(bytes.fromhex(line.strip()))
        )
        print(json.dumps(plain(message)))


main()
