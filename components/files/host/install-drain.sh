# True afterwards: when Google is about to take this VM (host maintenance tells 60 s ahead, preemption 30 s or less), Nginx
# takes no request any more and lets those under way end. Root alone reaches the metadata: guard-metadata.sh.
# shellcheck shell=bash
: "${PREFIX:?}" "${METADATA:?}" "${DRAIN_SECONDS:?}"

mkdir -p /etc/elastic-vllm
drain=/etc/elastic-vllm/$PREFIX-drain
# Google announces maintenance only to clients that have asked before, so this asks all the time.
cat >"$drain.new" <<DRAIN
#!/bin/bash
# Waits until Google is about to take this VM; then Nginx ends what it has begun, for $DRAIN_SECONDS s at most.
ask() { curl -s -f -H 'Metadata-Flavor: Google' --max-time 5 "$METADATA/\$1" || true; }
noticed() { [ "\$(ask preempted)" = TRUE ] || [ "\$(ask maintenance-event)" = TERMINATE_ON_HOST_MAINTENANCE ]; }
while :; do
  until noticed; do sleep 1; done
  echo "this VM is about to go: Nginx takes no more requests"
  docker stop --time $DRAIN_SECONDS $PREFIX-nginx
  # Where nothing came of it after all.
  while noticed; do sleep 1; done
  docker start $PREFIX-nginx
done
DRAIN
chmod 0755 "$drain.new"
mv -- "$drain.new" "$drain"
if [ -d /run/systemd/system ]; then
  install_unit "$PREFIX-drain.service" <<UNIT
[Unit]
Description=elastic-vllm: Nginx drains before Google takes this VM
After=docker.service network-online.target
Wants=network-online.target

[Service]
ExecStart=$drain
Restart=on-failure

[Install]
WantedBy=multi-user.target
UNIT
  systemctl is-active --quiet "$PREFIX-drain.service" || systemctl start --no-block "$PREFIX-drain.service"
fi
echo "watching for Google's notice to take this VM"
