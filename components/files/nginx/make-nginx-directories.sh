# True afterwards: Nginx has a directory on this machine for its log files, which are rotated, and one for the socket of
# its metrics, which root alone reaches.
# shellcheck shell=bash
: "${ENGINE:?}" "${LOGS:?}" "${METRICS:?}" "${STACK:?}" "${CONTAINER:?}" "${OWNER:?}" "${GID:?}"

command -v logrotate >/dev/null || install_packages logrotate
install -d -m 0755 -- "$(dirname "$LOGS")" "$(dirname "$METRICS")"
# Root's own: logrotate, which is root, follows nothing that Nginx could put there.
install -d -m 0750 -o root -g "$GID" -- "$LOGS"
for name in access.log error.log; do
  [ -e "$LOGS/$name" ] || install -m 0640 -o "$OWNER" -g "$GID" /dev/null "$LOGS/$name"
done
install -d -m 0700 -o "$OWNER" -g "$GID" -- "$METRICS"
install -m 0644 /dev/stdin "/etc/logrotate.d/elastic-vllm-$STACK" <<END
$LOGS/access.log $LOGS/error.log {
  daily
  maxsize 100M
  rotate 14
  missingok
  notifempty
  compress
  delaycompress
  create
  sharedscripts
  postrotate
    $ENGINE kill --signal USR1 $CONTAINER >/dev/null 2>&1 || true
  endscript
}
END
echo "log files in $LOGS, rotated daily"
