#!/usr/bin/env bash
# Does what the device needs install on arm64, and decide there as it does here? A Debian root for arm64, run by qemu's
# user emulation; in it `hscc-edge[device]` from wheels alone, and one phantom study classified by ONNX Runtime in both.
#   ARM64_ROOT   where root, wheels, study and result are kept (build/arm64); remove it to begin anew
#   ARM64_SUITE  Debian's suite (bookworm: Python 3.11 and glibc 2.36; JetPack 6 has 3.10 and 2.35, JetPack 7 3.12 and 2.39)
# Needs root for chroot and mounts, and Debian's debootstrap and qemu-user-static; exit code 1 if the results differ.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
cache=${ARM64_ROOT:-$here/build/arm64}
suite=${ARM64_SUITE:-bookworm}
python=${PYTHON:-$here/.venv/bin/python}
root=$cache/root wheels=$cache/wheels study=$cache/study
binfmt=/proc/sys/fs/binfmt_misc
registered=

fail() {
  echo "error: $1" >&2
  exit 2
}

# Mounts stay in a namespace of this script's own and go with it.
if [ -z "${ARM64_NAMESPACE:-}" ]; then
  [ "$(id -u)" -eq 0 ] || fail "make test-arm64 needs root for chroot and mounts: run it with sudo"
  [ -x "$python" ] || fail "$python does not exist: run make setup first"
  unshare --mount true 2>/dev/null || fail "this machine allows no mounts, as in a plain container: run it on a host or a virtual machine"
  ARM64_NAMESPACE=1 exec unshare --mount --propagation private bash "$0" "$@"
fi

emulate() {
  [ "$(uname -m)" != aarch64 ] || return 0
  [ -e "$binfmt/register" ] || mount -t binfmt_misc none "$binfmt" || fail "the kernel has no binfmt_misc: load that module"
  [ -e "$binfmt/qemu-aarch64" ] && return 0
  local description=/usr/lib/binfmt.d/qemu-aarch64.conf
  [ -e "$description" ] || fail "$description does not exist: run apt-get install qemu-user-static"
  cat "$description" >"$binfmt/register"
  registered=1
}

restore() {
  [ -z "$registered" ] || echo -1 >"$binfmt/qemu-aarch64"
}

inside() {
  env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LANG=C.UTF-8 OMP_NUM_THREADS=1 chroot "$root" "$@"
}

# run NAME COMMAND...: its output goes to NAME.log, its seconds to NAME.s
run() {
  local name=$1 start=$SECONDS
  shift
  echo "$name ..." >&2
  set +e # within a condition, bash would go on after a command that fails
  (
    set -e
    "$@"
  ) >"$cache/$name.log" 2>&1
  local code=$?
  set -e
  [ $code -eq 0 ] || {
    tail -5 "$cache/$name.log" >&2
    fail "the step $name failed, as said above: see $cache/$name.log, mend that and run make test-arm64 again"
  }
  echo $((SECONDS - start)) >"$cache/$name.s"
}

make_root() {
  [ "$(cat "$root/.made" 2>/dev/null)" != "$suite" ] || return 0
  rm -rf "$root"
  debootstrap --arch arm64 --foreign --variant=minbase --include=python3,python3-venv "$suite" "$root"
  inside /debootstrap/debootstrap --second-stage
  inside apt-get clean
  echo "$suite" >"$root/.made"
}

# Resolved for the root's Python and glibc; the root then takes nothing but these files.
make_wheels() {
  local version glibc platforms=(--platform manylinux2014_aarch64) minor
  version=$(inside python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  glibc=$(inside python3 -c 'import platform; print(platform.libc_ver()[1].split(".")[1])')
  for minor in $(seq 17 "$glibc"); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
  rm -rf "$wheels"
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$here"
  "$python" -m pip download --quiet --dest "$wheels" --only-binary=:all: --python-version "$version" "${platforms[@]}" \
    "$(echo "$wheels"/hscc_edge-*.whl)[device]"
}

install_wheels() {
  rm -rf "$root/wheels" "$root/opt/hscc-edge"
  cp -r "$wheels" "$root/wheels"
  inside python3 -m venv --without-pip /opt/hscc-edge
  # Debian's own pip, from the wheel that venv would install; bytecode is made at import, of what is imported
  inside sh -c 'exec /opt/hscc-edge/bin/python "$(echo /usr/share/python-wheels/pip-*.whl)/pip" install --no-compile \
    --no-index --find-links /wheels --only-binary=:all: "hscc-edge[device]"'
  rm -r "$root/wheels"
}

make_study() {
  local verb=("$python" -m hscc_edge)
  rm -rf "$study"
  mkdir -p "$study"
  sed 's/^epochs = .*/epochs = 2/' "$here/calibration/recipes/phantom-alexnet.toml" >"$study/recipe.toml"
  "${verb[@]}" cohort phantom "$study/cohort" --patients 40 --slices 3
  "${verb[@]}" train "$study/recipe.toml" --cohort "$study/cohort" --out "$study/dense"
  "${verb[@]}" compress "$study/dense" --cohort "$study/cohort" --budget flops=3x --images 32 --out "$study/small"
  "${verb[@]}" export "$study/small" --cohort "$study/cohort" --precision fp32 --images 8
  rm -rf "$study/dense"
}

classify_here() {
  "$python" "$here/tools/arm64_classify.py" "$study/small" "$study/cohort" >"$cache/here.json"
}

classify_there() {
  rm -rf "$root/study"
  cp -r "$study" "$root/study"
  cp "$here/tools/arm64_classify.py" "$root/study/"
  inside /opt/hscc-edge/bin/python /study/arm64_classify.py /study/small /study/cohort >"$cache/there.json"
}

for tool in debootstrap qemu-aarch64-static; do
  command -v $tool >/dev/null || fail "$tool is not installed: run bash tools/system_packages.sh arm64"
done
mkdir -p "$cache"
exec 9>"$cache/lock"
flock --nonblock 9 || fail "another run uses $cache: wait for it, or give another ARM64_ROOT"
trap restore EXIT
emulate
[ "$(cat "$root/.made" 2>/dev/null)" = "$suite" ] || run root make_root
mount -t proc proc "$root/proc" # but no /sys: ONNX Runtime takes this machine's processors there for Arm's, and crashes
run wheels make_wheels
run install install_wheels
run study make_study
run here classify_here
run there classify_there
"$python" "$here/tools/arm64_compare.py" "$cache"
