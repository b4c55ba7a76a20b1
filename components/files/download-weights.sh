# True afterwards: the model's weights are in WEIGHTS, complete and of REVISION. The hub's token comes on standard
# input and goes to the downloading process only, the same way.
# shellcheck shell=bash
: "${PREFIX:?}" "${WEIGHTS:?}" "${MODEL:?}" "${REVISION:?}" "${ENDPOINT:?}" "${UNNEEDED:?}" "${DOWNLOADER:?}" "${DOWNLOAD_UID:?}" "${REQUIREMENTS:?}"

# The hub's own client, in a place of its own. Not in vLLM's image: that is pulled meanwhile.
client=/var/lib/elastic-vllm/hub-client
# The system's own before any other: a user's may lie where nobody else may look.
python=/usr/bin/python3
[ -x "$python" ] || python=python3
install_client() {
  # A second stack on this server waits for the first.
  exec 9>"$client.lock"
  flock 9
  if [ "$(cat "$client/requirements.txt" 2>/dev/null)" != "$REQUIREMENTS" ]; then
    echo "installing the hub's client from PyPI"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
      command -v apt-get >/dev/null || fail "no $python with venv here" "install Python 3.10 or newer with venv"
      export DEBIAN_FRONTEND=noninteractive
      apt_update || fail "the lists of packages can't be read" "look at apt's lines above: the server must reach its package repositories"
      apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 python3-venv ||
        fail "could not install python3-venv" "look at apt's lines above: the server must reach its package repositories"
    fi
    "$python" -m venv --clear "$client"
    "$client/bin/pip" install --quiet --disable-pip-version-check --requirement <(echo "$REQUIREMENTS") ||
      fail "the hub's client could not be installed" "the server must reach PyPI, or a mirror named in /etc/pip.conf; or copy the weights there and set modelSource to host"
    echo "$REQUIREMENTS" >"$client/requirements.txt"
  fi
  exec 9>&-
}

install -d -m 0755 -- "$(dirname "$client")" "$WEIGHTS"
(umask 022 && install_client)
# One that was left by a connection cut half-way would write to the same files.
pkill -KILL -u "$DOWNLOAD_UID" -f -- "$PREFIX-download\$" || true
chown -R -- "$DOWNLOAD_UID:$DOWNLOAD_UID" "$WEIGHTS"
# A user of its own who sees the directory at a place that it can reach, wherever it lies, and can do nothing else.
mkdir -p /run/elastic-vllm
# shellcheck disable=SC2016 # the inner shell expands
unshare --mount sh -c 'mount --bind -- "$1" /run/elastic-vllm && shift && exec "$@"' sh "$WEIGHTS" \
  setpriv --reuid "$DOWNLOAD_UID" --regid "$DOWNLOAD_UID" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
  env -i HOME=/nonexistent PATH=/usr/bin:/bin HF_HOME=/nonexistent "HF_ENDPOINT=$ENDPOINT" HF_HUB_DISABLE_TELEMETRY=1 \
  "$client/bin/python" -I -c "$DOWNLOADER" "$MODEL" "$REVISION" /run/elastic-vllm "$UNNEEDED" "$PREFIX-download" ||
  fail "the weights of $MODEL could not be downloaded from $ENDPOINT" "see the line above, then run the update again: it goes on where it stopped"
