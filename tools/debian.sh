#!/bin/sh
# Install the Debian packages of a list (lines: package program) whose program is missing.
# Without apt-get or root nothing is installed and the missing ones are named: their tests skip, and fail where CI is set.
set -eu
missing=$(grep -v '^#' "$1" | while read -r package program; do
  [ -z "$package" ] || command -v "$program" >/dev/null 2>&1 || printf '%s ' "$package"
done)
[ -n "$missing" ] || exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  apt-get update -qq >/dev/null
  # shellcheck disable=SC2086 - a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
  echo "Not installed, so tests that need them are skipped (apt-get install them as root): $missing" >&2
fi
