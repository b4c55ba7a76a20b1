# True afterwards: Nginx answers on its port, at each of ADDRESSES.
# shellcheck shell=bash
: "${ENGINE:?}" "${CONTAINER:?}" "${ADDRESSES:?}" "${PORT:?}"

# Any answer will do: without vLLM it is 503. The certificate is for clients to check: its name need not be this one.
all_answer() {
  local address
  for address in $ADDRESSES; do
    silent=$address
    curl -sgk --noproxy "*" --max-time 5 -o /dev/null "https://$address:$PORT/healthz" || return 1
  done
}

silent=""
for _ in $(seq 100); do
  if all_answer; then
    echo "Nginx answers on port $PORT"
    exit 0
  fi
  if [ "$("$ENGINE" inspect --format '{{.State.Running}} {{.RestartCount}}' "$CONTAINER")" != "true 0" ]; then
    "$ENGINE" logs --tail 20 "$CONTAINER" >&2 2>&1 || true
    fail "Nginx does not run" "see its last lines above, or: $ENGINE logs $CONTAINER"
  fi
  sleep 0.2
done
case $silent in
'[::1]') fail "Nginx does not answer on port $PORT over IPv6 (ipv6)" "let Docker's userland-proxy, which carries IPv6 to it, run (daemon.json)" ;;
*) fail "Nginx does not answer on port $PORT" "see: $ENGINE logs $CONTAINER" ;;
esac
