# True afterwards: ENGINE (docker or podman) works here and comes up with the machine, and curl and nft are there.
# Installs from the distribution what is missing.
# shellcheck shell=bash
: "${ENGINE:?}" "${LOGIN:?}" "${SOCKET:?}"

packages=()
if [ "$ENGINE" = podman ]; then
  units=(podman.socket podman-restart.service)
  # What it publishes ports with, netavark, runs iptables, which Debian's packages only suggest.
  command -v podman >/dev/null || packages+=(podman iptables)
  # Its API is asked by the name of docker: Docker's own client does as well, and must not be removed for this one.
  command -v docker >/dev/null || packages+=(podman-docker)
  # For containers with GPUs: podman-with-gpus.sh. Elsewhere a newer crun does, as the proof will show.
  if [ -n "${TOOLKIT_VERSION:-}" ] && command -v apt-get >/dev/null && ! command -v runc >/dev/null; then packages+=(runc); fi
else
  units=(docker)
  command -v docker >/dev/null || packages+=(docker.io)
fi
command -v curl >/dev/null || packages+=(curl ca-certificates)
command -v nft >/dev/null || packages+=(nftables)
if [ "${#packages[@]}" -gt 0 ]; then install_packages "${packages[@]}"; fi
# From Debian 13 on, Docker's client is a package of its own, which docker.io only recommends.
command -v docker >/dev/null || install_packages docker-cli

answers() {
  if [ "$ENGINE" = podman ]; then
    # As pulumi-docker asks; and Podman's client answers without the API.
    docker --host "unix://$SOCKET" system dial-stdio </dev/null >/dev/null 2>&1 &&
      curl -sf --max-time 10 --unix-socket "$SOCKET" -o /dev/null http://podman/_ping
  else
    docker version >/dev/null 2>&1
  fi
}

if [ -d /run/systemd/system ]; then
  # Podman's socket can answer although nothing starts it, or the containers, at the next boot.
  for unit in "${units[@]}"; do
    if [ "$ENGINE" = podman ] && ! systemctl is-enabled --quiet "$unit"; then systemctl enable --quiet "$unit"; fi
  done
  answers || systemctl enable --now "${units[0]}"
fi
if ! answers; then
  for _ in $(seq 30); do
    answers && break
    sleep 1
  done
  start="see: journalctl -u ${units[0]}"
  if [ "$ENGINE" = podman ] && [ ! -d /run/systemd/system ]; then start="start it: podman system service --time 0 unix://$SOCKET"; fi
  answers || fail "$ENGINE is installed but does not answer" "$start"
fi
if [ "$ENGINE" = docker ] && [ "$LOGIN" != root ] && ! id -nG "$LOGIN" | grep -qw docker; then usermod -aG docker "$LOGIN"; fi
if [ "$ENGINE" = docker ] && [ "$(docker info --format '{{.LiveRestoreEnabled}}')" != true ]; then
  echo "note: this Docker ends containers when it is restarted or updated; {\"live-restore\": true} in /etc/docker/daemon.json and systemctl reload docker change that"
fi
echo "$ENGINE $("$ENGINE" version --format '{{.Server.Version}}') works"
