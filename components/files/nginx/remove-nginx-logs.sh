# True afterwards: the log files and their rotation are gone.
# shellcheck shell=bash
: "${LOGS:?}" "${STACK:?}"

rm -f -- "/etc/logrotate.d/elastic-vllm-$STACK"
rm -rf -- "$LOGS"
rmdir --ignore-fail-on-non-empty -- "$(dirname "$LOGS")" 2>/dev/null || true
echo "removed $LOGS"
