#!/bin/sh
# A root file system in FOLDER/root with a CPython that was built for musl, as Alpine's is: Debian's source of its own Python, Debian's
# musl. Without extension modules: that is a minute of two cores, so `make interop` does it and `make test` does not.
#
#   tools/musl_python.sh FOLDER
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
[ -x "$folder/root/opt/musl-python/bin/python3" ] && exit 0
cannot() {
  echo "No CPython for musl, so its test is skipped: $1" >&2
  exit 0
}
[ "$(id -u)" = 0 ] || cannot "installing musl needs root"
command -v apt-get >/dev/null 2>&1 || cannot "it is made of Debian's packages"
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends musl-tools linux-libc-dev make xz-utils >/dev/null
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -v security | head -n 1)
[ -n "$mirror" ] || cannot "apt has no source of Debian packages"
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
work=$folder/build
rm -rf "$work" "$folder/root" && mkdir -p "$work/lists/partial" "$work/include" "$work/src"
cd "$work"
echo "deb-src $mirror $suite main" >sources.list
apt() {
  apt-get -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists" -qq "$@"
}
version=$(apt-cache depends python3 | grep -o 'python3\.[0-9]*$' | head -n 1)
apt update && apt source --download-only "$version" >/dev/null 2>&1 || cannot "its source cannot be had"
tar xf python3*.orig.tar.* -C src --strip-components=1
multiarch=$(gcc -print-multiarch)
ln -s /usr/include/linux /usr/include/asm-generic "/usr/include/$multiarch/asm" include/
cat >musl-cc <<CC
#!/bin/sh
# musl-gcc with the kernel's headers; it does not call itself by Debian's name of the platform.
[ "\$1" = --print-multiarch ] && exit 0
exec musl-gcc -idirafter "$work/include" "\$@"
CC
chmod +x musl-cc
cd src
CC="$work/musl-cc" CFLAGS="-O1 -w" nice ./configure -q --prefix=/opt/musl-python --without-ensurepip --disable-test-modules --without-doc-strings >../log 2>&1 &&
  nice make -s -j2 python >>../log 2>&1 &&
  nice make -s bininstall libinstall DESTDIR="$folder/root" >>../log 2>&1 || {
  tail -n 5 ../log >&2
  exit 1
}
cd "$folder/root"
mkdir -p proc dev sys tmp srv lib
cp "$(readlink -f /lib/ld-musl-*.so.1)" "lib/$(basename /lib/ld-musl-*.so.1)"
rm -rf "$work"
