#!/usr/bin/env bash
# Install what is missing of the Debian packages that a make verb needs: where it may (root, or sudo without a password),
# else name the one command to run and end with 2.
#   tools/system_packages.sh setup    python3-venv
#   tools/system_packages.sh test     dcmtk, dicom3tools, openjph-tools, chromium, openssh-server, Pango, Orthanc, PixelMed, systemd, gcc
#   tools/system_packages.sh arm64    debootstrap, qemu-user-static
#   tools/system_packages.sh image    buildah, qemu-user-static
set -euo pipefail

python=${PYTHON:-python3}
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
library() { /sbin/ldconfig -p | grep "$1" >/dev/null || missing+=("$2"); }
case "${1:-}" in
  setup) "$python" -c "import ensurepip, venv" 2>/dev/null || missing+=("$(basename "$python")-venv") ;;
  test)
    need dsrdump dcmtk # not storescu: pynetdicom installs one too
    need dciodvfy dicom3tools
    need ojph_compress openjph-tools
    need chromium chromium
    library libpangoft2-1.0.so.0 libpangoft2-1.0-0 # WeasyPrint prints the evidence with them
    library libharfbuzz-subset.so.0 libharfbuzz-subset0
    PATH=$PATH:/usr/sbin need sshd openssh-server
    PATH=$PATH:/usr/sbin need Orthanc orthanc
    [ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || missing+=(orthanc-dicomweb) # sends by STOW-RS
    [ -e /usr/share/java/pixelmed.jar ] || missing+=(libpixelmed-java default-jre-headless) # validates structured reports
    need systemd-analyze systemd
    need cc gcc # the soak's failing disk
    [ -e /usr/include/unistd.h ] || missing+=(libc6-dev)
    ;;
  arm64)
    need debootstrap debootstrap
    need qemu-aarch64-static qemu-user-static
    ;;
  image)
    need buildah buildah
    need qemu-aarch64-static qemu-user-static
    ;;
  *)
    echo "usage: $0 setup|test|arm64|image" >&2
    exit 2
    ;;
esac
[ ${#missing[@]} -eq 0 ] && exit 0

install="apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ${missing[*]}"
run="sudo sh -c '$install'"
if ! command -v apt-get >/dev/null; then
  echo "error: make $1 needs ${missing[*]}, and this is no Debian or Ubuntu: install them and run it again" >&2
  exit 2
elif [ "$(id -u)" -eq 0 ]; then
  as_root=(sh -c)
elif sudo -n true 2>/dev/null; then
  as_root=(sudo sh -c)
else
  echo "error: make $1 needs ${missing[*]}; run: $run" >&2
  exit 2
fi
"${as_root[@]}" "$install" >/dev/null || {
  echo "error: apt-get could not install ${missing[*]}; mend that and run: $run" >&2
  exit 2
}
