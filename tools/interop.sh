#!/bin/sh
# Fetch and build the real backends and clients of tests/interop into the folder $1, by Maven, Go and npm, each within $INTEROP_SECONDS
# (600 by default). One that cannot be had stops nothing: NAME.why beside it has the reason, with which its tests skip.
set -u
self=$(cd "$(dirname "$0")" && pwd)/interop.sh
here=$(dirname "$self")/../tests/interop
mkdir -p "$1"
cd "$1" || exit 1

zipkin() {
  mvn -q -B dependency:copy -Dartifact=io.zipkin:zipkin-server:3.6.1:jar:exec -DoutputDirectory="$PWD" -Dmdep.stripVersion=true
}

oap() {
  rm -rf oap.part
  mvn -q -B -f "$here/oap/pom.xml" dependency:copy-dependencies -DoutputDirectory="$PWD/oap.part" && mv oap.part oap
}

collector() {
  GOBIN=$PWD go install go.opentelemetry.io/collector/cmd/builder@v0.162.0 &&
    ./builder --config="$here/collector.yaml" && mv collector/otelcol-interop otelcol
}

pyroscope() {
  go build -C "$here/pyroscope" -o "$PWD/pyroscope-push" .
}

client() {
  go build -C "$here/pyroscope_client" -o "$PWD/pyroscope_client" .
}

flamegraph() {
  rm -rf flamegraph.part
  cp -r "$here/flamegraph" flamegraph.part
  (cd flamegraph.part && npm install --silent --no-audit --no-fund --ignore-scripts --legacy-peer-deps && npm run --silent build) &&
    mv flamegraph.part flamegraph
}

# have NAME PROGRAM STEP: take the step, for which the program is needed, unless NAME is there already.
have() {
  [ -e "$1" ] && return
  if ! command -v "$2" >/dev/null 2>&1; then
    why="$2 is not installed"
  elif timeout "${INTEROP_SECONDS:-600}" nice "$self" . "$3" >"$1.log" 2>&1; then
    rm -f "$1.why"
    return
  else
    why="$2 could not bring it: $(tail -n 1 "$1.log" | cut -c 1-200)"
  fi
  echo "$1: $why" | tee "$1.why" >&2
}

if [ -n "${2:-}" ]; then
  "$2"
  exit
fi
have zipkin-server-exec.jar mvn zipkin
have oap mvn oap
have otelcol go collector
have pyroscope-push go pyroscope
have pyroscope_client go client
have flamegraph npm flamegraph
