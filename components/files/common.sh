# In front of every script: strict mode, and how to fail with a cause and a fix.
# shellcheck shell=bash
set -euo pipefail
fail() {
  printf 'elastic-vllm: %s\n  fix: %s\n' "$1" "$2" >&2
  exit 1
}
# apt's own patience does not hold for `update`, and a new machine looks for updates by itself.
apt_update() {
  local end=$((SECONDS + 300)) said
  until said=$(DEBIAN_FRONTEND=noninteractive apt-get update -q "$@" 2>&1); do
    if [ "$SECONDS" -ge "$end" ] || ! grep 'Could not get lock' <<<"$said" >/dev/null; then
      [ -z "$said" ] || echo "$said" >&2
      return 1
    fi
    echo "waiting for another apt to end"
    sleep 3
  done
}
# Makes and enables a systemd unit, which comes on standard input. One that is there already is left alone: a reload of
# systemd can take the GPUs away from containers that run (NVIDIA/nvidia-docker#1730).
install_unit() {
  local unit=/etc/systemd/system/$1
  cat >"$unit.new"
  if cmp -s "$unit.new" "$unit" && systemctl is-enabled --quiet "$1"; then
    rm -- "$unit.new"
    return
  fi
  mv -- "$unit.new" "$unit"
  systemctl daemon-reload
  systemctl enable --quiet "$1"
}
