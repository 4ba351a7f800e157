#!/usr/bin/env bash
# Build Dockerfile.jetson by buildah as far as that goes without NVIDIA's base image: on the root of tools/arm64.sh instead.
# There TensorRT is missing, and the build must stop at that; then with an empty folder of its name it must go through.
#   ARM64_ROOT   as for tools/arm64.sh, which has to run before
# Needs root, and Debian's buildah; exit code 1 if the build ends otherwise.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
cache=${ARM64_ROOT:-$here/build/arm64}
binding=usr/lib/python3/dist-packages/tensorrt
binfmt=/proc/sys/fs/binfmt_misc
registered=

fail() {
  echo "error: $1" >&2
  exit "${2:-2}"
}

restore() {
  [ -z "$registered" ] || echo -1 >"$binfmt/qemu-aarch64"
}

command -v buildah >/dev/null || fail "buildah is not installed: run bash tools/system_packages.sh image"
[ "$(id -u)" -eq 0 ] || fail "building the image needs root for chroot: run it with sudo"
[ -e "$cache/root/.made" ] || fail "$cache/root does not exist: run make test-arm64 first"
trap restore EXIT
if [ "$(uname -m)" != aarch64 ] && [ ! -e "$binfmt/qemu-aarch64" ]; then
  [ -e "$binfmt/register" ] || mount -t binfmt_misc none "$binfmt"
  cat /usr/lib/binfmt.d/qemu-aarch64.conf >"$binfmt/register"
  registered=1
fi

# import NAME: the root, without what tools/arm64.sh put into it, as an image
import() {
  local container
  container=$(buildah from --arch arm64 scratch)
  tar -C "$cache/root" --exclude=./opt/hscc-edge --exclude=./study --exclude='./tmp/*' --exclude='./proc/*' -cf "$cache/base.tar" .
  buildah add --quiet "$container" "$cache/base.tar" / >/dev/null
  rm "$cache/base.tar"
  [ "$1" = bare ] || buildah run --isolation chroot "$container" sh -c "mkdir -p /$binding && : >/$binding/__init__.py"
  buildah commit --quiet --rm "$container" "arm64-$1" >/dev/null
}

# CA certificates of this machine, for where its package index is reached through a proxy
build() {
  buildah build --isolation chroot --format docker --arch arm64 --no-cache --build-arg "BASE=localhost/arm64-$1" \
    --volume /etc/ssl/certs:/etc/ssl/certs:ro --tag "hscc-edge-$1" --file "$here/Dockerfile.jetson" "$here" \
    >"$cache/image-$1.log" 2>&1
}

start=$SECONDS
import bare
import standin
! build bare || fail "the image was built on a base without TensorRT" 1
grep -q "BASE has no tensorrt for Python" "$cache/image-bare.log" ||
  fail "the build stopped before it looked for TensorRT: see $cache/image-bare.log" 1
build standin || fail "the image was not built on a base with a folder named tensorrt: see $cache/image-standin.log" 1
container=$(buildah from --arch arm64 hscc-edge-standin)
version=$(buildah run --isolation chroot "$container" -- hscc-edge --version)
user=$(buildah run --isolation chroot "$container" -- id -un)
buildah rm "$container" >/dev/null
echo "image: stops on a base without TensorRT; with a stand-in for it built in $((SECONDS - start)) s: hscc-edge $version as $user"
