#!/bin/sh
# Fetch and build the real backends of tests/interop into the folder $1, by Maven and Go; what cannot be had is named.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
cd "$1"
if ! [ -e zipkin-server-exec.jar ]; then
  if command -v mvn >/dev/null 2>&1; then
    mvn -q -B dependency:copy -Dartifact=io.zipkin:zipkin-server:3.6.1:jar:exec -DoutputDirectory="$PWD" -Dmdep.stripVersion=true
  else
    echo "Not fetched, so its tests are skipped: the Zipkin server (needs mvn)" >&2
  fi
fi
if ! [ -e collector/otelcol-interop ]; then
  if command -v go >/dev/null 2>&1; then
    GOBIN="$PWD" go install go.opentelemetry.io/collector/cmd/builder@v0.159.0
    nice ./builder --config="$here/tests/interop/collector.yaml"
  else
    echo "Not built, so its tests are skipped: the OpenTelemetry collector (needs go 1.26)" >&2
  fi
fi
