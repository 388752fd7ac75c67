#!/bin/sh
# CPython 3.14 and 3.15 as targets of the tests: Debian's packages of them, unpacked (never installed) into FOLDER/root, which
# serves as the root directory of the processes under test; FOLDER/bin has a command for each. Also uvloop for every minor.
#
#   tools/interpreters.sh FOLDER PYTHON [more packages...]     PYTHON: one with pip
#
# The mirror is the one that this machine's apt uses, Debian's unstable branch on it is read with lists and a status of its own,
# and its signature is checked. Some 30 MB are fetched, in well under a minute. Without root (chroot) or apt nothing is made.
set -eu
folder=$1 python=$2
shift 2
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
packages="python3.14 python3.15 libpython3.15 $*"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# uvloop needs neither root nor apt.
fetch() {
  "$python" -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --upgrade --target "$2" \
    --only-binary :all: --python-version "3.$1" --implementation cp --platform "manylinux2014_$(uname -m)" uvloop
}
for minor in 8 9 10 11 12 13; do
  fetch "$minor" "$folder/site/3.$minor" || echo "No uvloop for CPython 3.$minor: its tests are skipped" >&2
done

cannot() {
  echo "No CPython 3.14 and 3.15 for the tests, which are skipped: $1" >&2
  exit 0
}
[ "$(id -u)" = 0 ] || cannot "making and using them needs root (chroot)"
command -v apt-get >/dev/null 2>&1 || cannot "there is no apt-get to fetch them with"
[ -r "$keyring" ] || cannot "there is no $keyring to check Debian's signature with (apt-get install debian-archive-keyring)"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -v security | head -n 1)
[ -n "$mirror" ] || cannot "apt has no source of Debian packages"

apt=$folder/apt
mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
: >"$apt/status"
echo "deb [signed-by=$keyring] $mirror unstable main" >"$apt/sources.list"
cat >"$apt/apt.conf" <<CONF
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
CONF
export APT_CONFIG="$apt/apt.conf"
apt-get update -qq || cannot "its package lists cannot be fetched from apt's mirror"
# shellcheck disable=SC2086 - a list of words
apt-get install -y -qq --download-only $packages >/dev/null || cannot "Debian unstable does not have all of $packages"

root=$folder/root.new
rm -rf "$root" "$folder/root"
mkdir -p "$root/usr/bin" "$root/usr/lib" "$root/usr/lib64" "$root/usr/sbin" "$root/tmp" "$root/dev" "$root/proc" "$folder/bin"
for name in bin lib lib64 sbin; do ln -s "usr/$name" "$root/$name"; done
for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
rm -rf "$root/usr/share/doc" "$root/usr/share/zoneinfo"
mv "$root" "$folder/root"
rm -rf "$apt"

# `exec` twice: the process that is started becomes the interpreter.
for name in python3.14 python3.15; do
  printf '#!/bin/sh\nexec chroot "%s" /usr/bin/%s "$@"\n' "$folder/root" "$name" >"$folder/bin/$name"
  chmod +x "$folder/bin/$name"
done
for minor in 14 15; do
  fetch "$minor" "$folder/root/usr/local/lib/python3.$minor/dist-packages" || cannot "their uvloop cannot be fetched"
done
touch "$folder/.done"
