# True afterwards: Nginx answers on its port.
# shellcheck shell=bash
: "${ENGINE:?}" "${CONTAINER:?}" "${PORT:?}"

for _ in $(seq 100); do
  # Any answer will do: without vLLM it is 503. The certificate is for clients to check: its name need not be this one.
  if curl -sk --noproxy "*" --max-time 5 -o /dev/null "https://127.0.0.1:$PORT/healthz"; then
    echo "Nginx answers on port $PORT"
    exit 0
  fi
  if [ "$("$ENGINE" inspect --format '{{.State.Running}} {{.RestartCount}}' "$CONTAINER")" != "true 0" ]; then
    "$ENGINE" logs --tail 20 "$CONTAINER" >&2 2>&1 || true
    fail "Nginx does not run" "see its last lines above, or: $ENGINE logs $CONTAINER"
  fi
  sleep 0.2
done
fail "Nginx does not answer on port $PORT" "see: $ENGINE logs $CONTAINER"
