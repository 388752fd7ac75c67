#!/bin/sh
# Fetch and build the real backends and clients of tests/interop into the folder $1, by Maven, Go and npm; what cannot be had is named.
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
if command -v go >/dev/null 2>&1; then
  (cd "$here/tests/interop/pyroscope_client" && nice go build -o "$OLDPWD/pyroscope_client" .)
else
  echo "Not built, so its test is skipped: the Go client of Grafana's data source (needs go 1.26)" >&2
fi
if command -v npm >/dev/null 2>&1; then
  mkdir -p flamegraph
  cp "$here"/tests/interop/flamegraph/* flamegraph/
  (cd flamegraph && nice npm install --silent --no-audit --no-fund --ignore-scripts --legacy-peer-deps && nice npm run --silent build)
else
  echo "Not built, so its test is skipped: Grafana's flame graph component (needs npm)" >&2
fi
