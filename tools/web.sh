#!/bin/sh
# Into the folder $1: what the tests of the web page and of Grafana's side need from npm and PyPI.
# Without npm its part is left out: those tests skip, and fail where CI is set.
set -eu
folder=$1
pip="$2 -m pip install --quiet --disable-pip-version-check --no-deps"
for version in 1769699998!10.1.0 1769699796!10.4.0 1769699734!11.0.0 1769699379!11.6.0; do # an epoch, then Grafana's own
  [ -d "$folder/grafana-sdk/${version#*!}" ] || $pip --target "$folder/grafana-sdk/${version#*!}" "grafana-foundation-sdk==$version"
done
if command -v npm >/dev/null 2>&1; then
  mkdir -p "$folder/node"
  cp tests/api/node/package.json tests/api/node/*.mjs "$folder/node/"
  (cd "$folder/node" && npm install --silent --no-audit --no-fund --ignore-scripts)
else
  echo "npm is not there: the page's types and the Connect client are not tested" >&2
fi
