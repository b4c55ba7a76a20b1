# True afterwards: vLLM has answered its health check on the socket.
# shellcheck shell=bash
: "${CONTAINER:?}" "${SOCKET:?}"

start=$SECONDS
restarts=$(docker inspect --format '{{.RestartCount}}' "$CONTAINER")
# Large models take minutes to load and to compile; vLLM itself says when something is wrong.
while [ "$((SECONDS - start))" -lt 3600 ]; do
  if curl -sf --max-time 10 --unix-socket "$SOCKET" -o /dev/null http://vllm/health; then
    echo "vLLM is ready after $((SECONDS - start)) s"
    exit 0
  fi
  state=$(docker inspect --format '{{.State.Running}} {{.RestartCount}} {{.State.OOMKilled}} {{.State.ExitCode}}' "$CONTAINER")
  read -r running count killed code <<<"$state"
  if [ "$running" != true ] || [ "$count" -gt "$restarts" ]; then
    docker logs --tail 20 "$CONTAINER" >&2 2>&1 || true
    if [ "$killed" = true ]; then fail "vLLM ran out of memory while it started" "take a smaller model or contextTokens"; fi
    fail "vLLM stopped while it started (exit code $code)" "see its last lines above, or: docker logs $CONTAINER"
  fi
  if [ "$(((SECONDS - start) % 5))" = 0 ] && [ "${said:--1}" != "$SECONDS" ]; then
    said=$SECONDS
    echo "loading for $((SECONDS - start)) s: $(docker logs --tail 1 "$CONTAINER" 2>&1 | cut -c 1-120)"
  fi
  sleep 0.3
done
fail "vLLM did not answer within an hour" "see: docker logs $CONTAINER"
