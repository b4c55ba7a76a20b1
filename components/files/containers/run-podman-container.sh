# Defines run_container WORDS: true afterwards, the container CONTAINER runs as `podman run` makes it of these words, and
# another one of that name is gone. One that does is left alone. Prints its id, and nothing else.
# shellcheck shell=bash
: "${CONTAINER:?}" "${PODMAN:?}"

run_container() {
  local made found
  made=$(printf '%s\0' "$@" | sha256sum | cut -c 1-32)
  found=$(podman inspect --type container --format '{{.State.Running}} {{index .Config.Labels "elastic-vllm.made"}}' \
    "$CONTAINER" 2>/dev/null) || true
  if [ "$found" != "true $made" ]; then
    podman rm --force "$CONTAINER" >/dev/null 2>&1 || true
    "$PODMAN" run --detach --label "elastic-vllm.made=$made" "$@" >/dev/null ||
      fail "Podman can't start the container $CONTAINER" "see Podman's line above, then run the update again"
  fi
  podman inspect --type container --format '{{.Id}}' "$CONTAINER"
}
