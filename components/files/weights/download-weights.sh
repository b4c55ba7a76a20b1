# True afterwards: the model's weights are in WEIGHTS, complete and of REVISION. The hub's token comes on standard
# input and goes to the downloading process only, the same way. The proxy, which may hold a password, goes there on
# descriptor 3.
# shellcheck shell=bash
: "${PREFIX:?}" "${WEIGHTS:?}" "${MODEL:?}" "${REVISION:?}" "${ENDPOINT:?}" "${UNNEEDED:?}" "${DOWNLOADER:?}" "${DOWNLOAD_UID:?}" "${REQUIREMENTS:?}"

# The hub's client, in a separate directory. Not from vLLM's image, which is pulled at the same time.
client=/var/lib/elastic-vllm/hub-client

install -d -m 0755 -- "$WEIGHTS"
install_client "$client" "the hub's client" "$REQUIREMENTS" "or copy the weights there and set modelSource to host"
# A download left over from a broken connection would write to the same files.
pkill -KILL -u "$DOWNLOAD_UID" -f -- "$PREFIX-download\$" || true
chown -R -- "$DOWNLOAD_UID:$DOWNLOAD_UID" "$WEIGHTS"
# A dedicated user that sees the directory at a place that it can reach, wherever it is, and has no other rights.
mkdir -p /run/elastic-vllm
way_out=/dev/null
if [ -e "${DOWNLOADS:-}/environment" ]; then
  trust_downloads
  way_out=$DOWNLOADS/environment
fi
# shellcheck disable=SC2016 # the inner shell expands
unshare --mount sh -c 'mount --bind -- "$1" /run/elastic-vllm && shift && exec "$@"' sh "$WEIGHTS" \
  setpriv --reuid "$DOWNLOAD_UID" --regid "$DOWNLOAD_UID" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
  env -i HOME=/nonexistent PATH=/usr/bin:/bin HF_HOME=/nonexistent "HF_ENDPOINT=$ENDPOINT" HF_HUB_DISABLE_TELEMETRY=1 WAY_OUT=3 \
  "$client/bin/python" -I -c "$DOWNLOADER" "$MODEL" "$REVISION" /run/elastic-vllm "$UNNEEDED" "$PREFIX-download" 3<"$way_out" ||
  fail "the weights of $MODEL could not be downloaded from $ENDPOINT" "see the line above, then run the update again: it resumes"
