# A Python client in a separate directory, for the server itself: `install_client DIRECTORY NAME REQUIREMENTS FIX`.
# shellcheck shell=bash
: "${directly?}"
install_client() (
  client=$1 name=$2 requirements=$3 fix=$4
  umask 022
  install -d -m 0755 -- "$(dirname "$client")"
  # The system's own before any other: a user's may lie where nobody else may look.
  python=/usr/bin/python3
  [ -x "$python" ] || python=python3
  # A second stack on this server waits for the first.
  exec 9>"$client.lock"
  flock 9
  [ "$(cat "$client/requirements.txt" 2>/dev/null)" != "$requirements" ] || exit 0
  echo "installing $name from PyPI"
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    install_packages python3-venv
  fi
  "$python" -m venv --clear "$client"
  # Wheels only: no hash covers what building a source distribution fetches.
  fetching "$client/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
    --requirement <(echo "$requirements") </dev/null ||
    fail "$name could not be installed" "the server must reach PyPI, or a mirror named in /etc/pip.conf, $directly; $fix"
  echo "$requirements" >"$client/requirements.txt"
)
