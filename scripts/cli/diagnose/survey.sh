# What the server looks like, a line each: NAME, a tab, what there is. Reads only.
# shellcheck shell=bash
: "${ENGINE:?}" "${PREFIX:?}" "${DIRECTORY:?}" "${LOGS:?}" "${LINES_OF_LOG:?}"
set +e # what can't be looked at hides nothing else

say() { printf '%s\t%s\n' "$1" "$2"; }
say clock "$(date +%s)"
say uptime "$(cut -d ' ' -f 1 /proc/uptime)"
say memory "$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)"
if "$ENGINE" info >/dev/null 2>&1; then say engine "$("$ENGINE" version --format '{{.Server.Version}}')"; else
  say engine-down "$("$ENGINE" info 2>&1 | grep -i error | head -n 1)"
fi
for place in / /var/lib/docker /var/lib/containers "$DIRECTORY" "$DIRECTORY/cache" "$LOGS" /tmp; do
  [ -e "$place" ] && say disk "$(df -P -k "$place" | awk -v place="$place" 'NR == 2 {print place, $2, $4}')"
done
for role in vllm nginx; do
  container=$PREFIX-$role
  state=$("$ENGINE" inspect --format \
    '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.RestartCount}} {{.State.StartedAt}}' "$container" 2>/dev/null) ||
    state=missing
  say "container-$role" "$state"
  "$ENGINE" logs --tail "$LINES_OF_LOG" "$container" 2>&1 | while IFS= read -r line; do say "log-$role" "$line"; done || true
done
socket=$DIRECTORY/socket/vllm.sock
if [ -S "$socket" ]; then
  say socket "$(stat -c '%a %u:%g' "$socket")"
  say vllm-health "$(curl -s -o /dev/null -m 5 -w '%{http_code}' --unix-socket "$socket" http://vllm/health || true)"
fi
filter=/etc/elastic-vllm/$PREFIX-packet-filter.sh
if [ -e "$filter" ] && [ -z "$(bash "$filter" missing "$PREFIX-egress")" ]; then say guard there; else say guard missing; fi
if command -v nvidia-smi >/dev/null; then
  say gpu "$(nvidia-smi --query-gpu=index,name,memory.used,memory.total --format=csv,noheader 2>&1 | paste -s -d ';')"
fi
(dmesg 2>/dev/null | grep -E 'Out of memory|oom-kill|NVRM: Xid' | tail -n 5 || true) |
  while IFS= read -r line; do say kernel "$line"; done
