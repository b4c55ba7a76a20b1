# True afterwards: vLLM has answered its health check on the socket.
# shellcheck shell=bash
: "${ENGINE:?}" "${CONTAINER:?}" "${SOCKET:?}" "${GPU_COUNT:?}"

start=$SECONDS
restarts=$("$ENGINE" inspect --format '{{.RestartCount}}' "$CONTAINER")
# Large models take minutes to load and to compile; vLLM itself says when something is wrong.
while [ "$((SECONDS - start))" -lt 3600 ]; do
  if curl -sf --max-time 10 --unix-socket "$SOCKET" -o /dev/null http://vllm/health; then
    # An engine that takes no notice of a wish for GPUs would leave vLLM without: that it answers says nothing of them.
    if [ "$GPU_COUNT" -gt 0 ]; then
      count=$("$ENGINE" exec "$CONTAINER" nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || true
      [ "$count" -ge "$GPU_COUNT" ] ||
        fail "vLLM's container sees $count GPUs, $GPU_COUNT are needed (gpuCount)" "see: $ENGINE exec $CONTAINER nvidia-smi"
    fi
    echo "vLLM is ready after $((SECONDS - start)) s"
    exit 0
  fi
  state=$("$ENGINE" inspect --format '{{.State.Running}} {{.RestartCount}} {{.State.OOMKilled}} {{.State.ExitCode}}' "$CONTAINER")
  read -r running count killed code <<<"$state"
  if [ "$running" != true ] || [ "$count" -gt "$restarts" ]; then
    "$ENGINE" logs --tail 20 "$CONTAINER" >&2 2>&1 || true
    if [ "$killed" = true ]; then fail "vLLM ran out of memory while it started" "take a smaller model or maxModelLen"; fi
    fail "vLLM stopped while it started (exit code $code)" "see its last lines above, or: $ENGINE logs $CONTAINER"
  fi
  if [ "$(((SECONDS - start) % 5))" = 0 ] && [ "${said:--1}" != "$SECONDS" ]; then
    said=$SECONDS
    echo "loading for $((SECONDS - start)) s: $("$ENGINE" logs --tail 1 "$CONTAINER" 2>&1 | cut -c 1-120)"
  fi
  sleep 0.3
done
fail "vLLM did not answer within an hour" "see: $ENGINE logs $CONTAINER"
