#!/usr/bin/env bash
# Install the Debian packages that the tests talk to, if they are missing: dcmtk, dicom3tools, chromium.
set -euo pipefail

missing=()
command -v storescu >/dev/null || missing+=(dcmtk)
command -v dciodvfy >/dev/null || missing+=(dicom3tools)
command -v chromium >/dev/null || missing+=(chromium)
[ ${#missing[@]} -eq 0 ] && exit 0

install="apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ${missing[*]}"
if ! command -v apt-get >/dev/null; then
  echo "error: the tests need ${missing[*]}, and this is no Debian or Ubuntu: install them and run make test again" >&2
  exit 2
elif [ "$(id -u)" -eq 0 ]; then
  sh -c "$install" >/dev/null
elif sudo -n true 2>/dev/null; then
  sudo sh -c "$install" >/dev/null
else
  echo "error: the tests need ${missing[*]}; run: sudo sh -c '$install'" >&2
  exit 2
fi
