# True afterwards: the stack's directory, and in it those of vLLM's socket and cache with their owners.
# shellcheck shell=bash
: "${DIRECTORY:?}" "${SOCKET_DIRECTORY:?}" "${CACHE_DIRECTORY:?}" "${OWNER:?}" "${GID:?}"

install -d -m 0755 -- "$DIRECTORY"
# Through the socket one can talk to vLLM without a key: only its user and Nginx's group get that far.
install -d -m 0750 -o "$OWNER" -g "$GID" -- "$SOCKET_DIRECTORY"
install -d -m 0700 -o "$OWNER" -g "$GID" -- "$CACHE_DIRECTORY"
echo "directories ready in $DIRECTORY"
