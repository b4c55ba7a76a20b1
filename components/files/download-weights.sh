# True afterwards: the model's weights are in WEIGHTS, complete and of REVISION. The hub's token comes on standard
# input and goes to the downloading process only, the same way.
# shellcheck shell=bash
: "${PREFIX:?}" "${IMAGE:?}" "${WEIGHTS:?}" "${MODEL:?}" "${REVISION:?}" "${ENDPOINT:?}" "${UNNEEDED:?}" "${DOWNLOADER:?}"

install -d -m 0755 -- "$WEIGHTS"
# One that was left by a connection cut half-way would write to the same files.
docker rm --force "$PREFIX-download" >/dev/null 2>&1 || true
# The host's network: a hub may be a mirror on the server itself. Nothing else of the host is given.
docker run --rm --interactive --name "$PREFIX-download" --label "elastic-vllm.stack=${PREFIX#elastic-vllm-}" \
  --network host --user 0:0 --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp \
  --env HOME=/tmp --env HF_HOME=/tmp/hf --env "HF_ENDPOINT=$ENDPOINT" --env HF_HUB_DISABLE_TELEMETRY=1 \
  --volume "$WEIGHTS:/weights" --entrypoint python3 "$IMAGE" \
  -c "$DOWNLOADER" "$MODEL" "$REVISION" /weights "$UNNEEDED" ||
  fail "the weights of $MODEL could not be downloaded from $ENDPOINT" "see the line above, then run the update again: it goes on where it stopped"
