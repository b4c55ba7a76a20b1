# True afterwards: vLLM has answered its health check, and each request on standard input, which Elastic will send.
# shellcheck shell=bash
: "${ENGINE:?}" "${CONTAINER:?}" "${SOCKET:?}" "${SOCKET_INSIDE:?}" "${GPU_COUNT:?}" "${ASK:?}"
requests=$(cat)

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
    # /health says nothing of the model: one that refuses what Elastic will send fails here, before Elastic has it.
    if ! refusals=$("$ENGINE" exec -i "$CONTAINER" python3 -c "$ASK" "$SOCKET_INSIDE" <<<"$requests" 2>&1); then
      echo "$refusals" >&2
      fail "the model does not answer what Elastic will send: ${refusals%%$'\n'*}" \
        "take another model, or another tokenizer mode, chat template or tool-call parser (docs/adr/0025-default-model.md)"
    fi
    echo "vLLM is ready after $((SECONDS - start)) s: the model answered what Elastic will send"
    exit 0
  fi
  state=$("$ENGINE" inspect --format '{{.State.Running}} {{.RestartCount}} {{.State.OOMKilled}} {{.State.ExitCode}}' "$CONTAINER")
  read -r running count killed code <<<"$state"
  if [ "$running" != true ] || [ "$count" -gt "$restarts" ]; then
    "$ENGINE" logs --tail 20 "$CONTAINER" >&2 2>&1 || true
    if [ "$killed" = true ]; then fail "vLLM ran out of memory while it started" "take a smaller model or maxModelLen"; fi
    fail "vLLM stopped while it started (exit code $code)" "see its last lines above, or: $ENGINE logs $CONTAINER"
  fi
  if [ "$(((SECONDS - start) % 5))" = 0 ] && [ "${reported:--1}" != "$SECONDS" ]; then
    reported=$SECONDS
    echo "loading for $((SECONDS - start)) s: $("$ENGINE" logs --tail 1 "$CONTAINER" 2>&1 | cut -c 1-120)"
  fi
  sleep 0.3
done
fail "vLLM did not answer within an hour" "see: $ENGINE logs $CONTAINER"
