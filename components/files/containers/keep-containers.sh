# True afterwards: a Docker that is not installed yet will let containers run on while it is restarted or updated, or has
# crashed. One that is there already is not changed. It runs first: scripts that configure Docker later add to this.
# shellcheck shell=bash

if ! command -v docker >/dev/null && [ ! -e /etc/docker/daemon.json ]; then
  install -D -m 0644 /dev/stdin /etc/docker/daemon.json <<'CONFIGURATION'
{
  "live-restore": true
}
CONFIGURATION
fi
