#!/bin/sh
# A root file system for the container tests, made with debootstrap into FOLDER/root: Debian with Python and its venv module,
# and the packages that are named besides. The mirror is the one that this machine's apt uses.
#
#   tools/rootfs.sh FOLDER [more packages...]
set -eu
folder=$1
shift
cannot() {
  echo "No root file system for the container tests, which are skipped: $1" >&2
  exit 0
}
[ "$(id -u)" = 0 ] || cannot "making one needs root"
for program in debootstrap runc buildah; do
  command -v $program >/dev/null 2>&1 || cannot "there is no $program (Debian has it)"
done
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -v security | head -n 1)
[ -n "$mirror" ] || cannot "apt has no source of Debian packages"
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
rm -rf "$folder/root.new" "$folder/root"
mkdir -p "$folder"
include=$(echo "python3,python3-venv,ca-certificates $*" | tr ' ' ',' | sed 's/,$//')
debootstrap --variant=minbase --include="$include" "$suite" "$folder/root.new" "$mirror" >"$folder/log" 2>&1 || {
  tail -n 5 "$folder/log" >&2
  exit 1
}
rm -rf "$folder/root.new/var/cache/apt/archives" "$folder/root.new/var/lib/apt/lists" "$folder/root.new/usr/share/doc"
mv "$folder/root.new" "$folder/root"
