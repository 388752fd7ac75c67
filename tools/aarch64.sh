#!/bin/sh
# Debian's CPython for aarch64 with its headers and libc's, unpacked into FOLDER/root, and the compiler for it: what can be checked of
# aarch64 on a machine that is none.
#
#   tools/aarch64.sh FOLDER
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
[ -d "$folder/root" ] && exit 0
cannot() {
  echo "Nothing of aarch64, so its tests are skipped: $1" >&2
  exit 0
}
[ "$(id -u)" = 0 ] || cannot "installing a compiler needs root"
command -v apt-get >/dev/null 2>&1 || cannot "it is made of Debian's packages"
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc-aarch64-linux-gnu >/dev/null
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -v security | head -n 1)
[ -n "$mirror" ] || cannot "apt has no source of Debian packages"
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
mkdir -p "$folder/lists/partial" && cd "$folder"
echo "deb [arch=arm64] $mirror $suite main" >sources.list
foreign() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::Etc::sourcelist="$folder/sources.list" \
    -o Dir::Etc::sourceparts=- -o Dir::State::lists="$folder/lists" "$@"
}
foreign update && foreign download libpython3-dev libc6-dev linux-libc-dev 2>/dev/null || cannot "its packages cannot be had"
version=$(dpkg-deb -f libpython3-dev_*.deb Depends | grep -o 'libpython3\.[0-9]*-dev' | head -n 1)
foreign download "$version" "${version%-dev}" 2>/dev/null || cannot "its packages cannot be had"
for package in *.deb; do dpkg-deb -x "$package" root.new; done
rm -rf ./*.deb lists sources.list
mv root.new root
