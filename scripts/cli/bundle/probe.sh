#!/usr/bin/env bash
# Prints what a bundle has to fit, as JSON on standard output: run it on the server, and carry the output out.
#   bash probe.sh [DIRECTORY]... > probe.json     DIRECTORY: for the weights; the output then has its free disk space
# It only reads, and needs only bash, coreutils and gzip. Its output holds no secret and no host name.
# The document's fields: scripts/cli/bundle/probe.py.
set -euo pipefail
LC_ALL=C
export LC_ALL

text() { # as JSON
  local value
  value=$(printf '%s' "$1" | tr -d '\000-\037')
  value=${value//\\/\\\\}
  printf '"%s"' "${value//\"/\\\"}"
}
# What a program says of its version; null where there is none, or none that works.
version() {
  local found output
  if ! found=$(command -v "$1" || PATH=$PATH:/usr/sbin:/sbin command -v "$1") ||
    ! output=$("$found" "${@:2}" </dev/null 2>&1); then
    printf null
    return
  fi
  output=$(tr '\n' ' ' <<<"$output" | grep -oE '[0-9]+(\.[0-9]+)+' | tr '\n' ' ') || true
  text "${output%% *}"
}
of_system() { # a variable of os-release, read in a subshell
  (
    set +u
    # shellcheck disable=SC1091
    . /etc/os-release 2>/dev/null
    printf '%s' "${!1}"
  ) || true
}

case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac

echo '{'
printf ' "format": 1,\n'
printf ' "distribution": {"id": %s, "version": %s, "codename": %s},\n' \
  "$(text "$(of_system ID)")" "$(text "$(of_system VERSION_ID)")" "$(text "$(of_system VERSION_CODENAME)")"
printf ' "architecture": "%s",\n' "$architecture"
printf ' "kernel": %s,\n' "$(text "$(uname -r)")"
printf ' "memory_bytes": %s,\n' "$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo) * 1024))"

printf ' "disks": ['
comma=""
for path in / /var/lib "$@"; do
  directory=$path
  while [ ! -d "$directory" ]; do directory=$(dirname -- "$directory"); done
  read -r size free < <(df --output=size,avail -B 1 -- "$directory" | tail -n 1)
  printf '%s\n  {"path": %s, "bytes": %s, "free_bytes": %s}' "$comma" "$(text "$path")" "$size" "$free"
  comma=,
done
printf '\n ],\n'

# By PCI: NVIDIA's (0x10de) display controllers (class 0x03) and its NVSwitches (0x0680), driver or not.
printf ' "pci": ['
comma=""
for device in "${SYSFS:-/sys}"/bus/pci/devices/*; do
  [ "$(cat "$device/vendor" 2>/dev/null)" = 0x10de ] || continue
  printf '%s\n  {"class": %s, "device": %s}' "$comma" "$(text "$(cat "$device/class")")" "$(text "$(cat "$device/device")")"
  comma=,
done
printf '\n ],\n'
driver=null
if command -v nvidia-smi >/dev/null && output=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader </dev/null 2>/dev/null); then
  driver=$(text "${output%%$'\n'*}")
fi
printf ' "nvidia_driver": %s,\n' "$driver"

printf ' "programs": {'
comma=""
for program in "docker --version" "podman --version" "runc --version" "nvidia-ctk --version" "curl --version" "nft --version" \
  "logrotate --version" "rsync --version" "python3 --version" "sudo --version" "skopeo --version"; do
  read -r -a words <<<"$program"
  printf '%s\n  "%s": %s' "$comma" "${words[0]}" "$(version "${words[@]}")"
  comma=,
done
printf '\n },\n'

# dpkg's own list of what is installed, so that dependencies can be resolved elsewhere; null where there is no dpkg.
status=null
if [ -r "${DPKG:-/var/lib/dpkg}/status" ]; then status="\"$(gzip -9 -n -c "${DPKG:-/var/lib/dpkg}/status" | base64 -w 0)\""; fi
printf ' "dpkg_status": %s\n' "$status"
echo '}'
