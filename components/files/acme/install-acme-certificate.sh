# True afterwards: a certificate of the ACME server is where Nginx looks for it and is renewed in time.
# shellcheck shell=bash
: "${PREFIX:?}" "${DIRECTORY:?}" "${RENEW:?}" "${REQUIREMENTS:?}"

install_client /var/lib/elastic-vllm/acme-client "the ACME client (certbot)" "$REQUIREMENTS" "or set tls to private-ca or provided"
install -d -m 0700 -- "$DIRECTORY/acme"
printf '%s' "$CA" | install -m 0600 /dev/stdin "$DIRECTORY/acme/ca.pem"
# Written under another name, because bash reads a running script as it proceeds.
printf '%s' "$RENEW" | install -m 0700 /dev/stdin "$DIRECTORY/acme/renew.new"
mv -- "$DIRECTORY/acme/renew.new" "$DIRECTORY/acme/renew"
"$DIRECTORY/acme/renew"
if [ -d /run/systemd/system ]; then
  install_unit "$PREFIX-acme.service" <<UNIT
[Unit]
Description=elastic-vllm: renew the endpoint's certificate if it is due
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart=$DIRECTORY/acme/renew
UNIT
  # Twice a day, as Let's Encrypt asks: its certificates for addresses last only six days.
  install_unit "$PREFIX-acme.timer" <<UNIT
[Unit]
Description=elastic-vllm: renew the endpoint's certificate if it is due

[Timer]
OnCalendar=*-*-* 00,12:00:00
RandomizedDelaySec=6h
Persistent=true

[Install]
WantedBy=timers.target
UNIT
  systemctl start "$PREFIX-acme.timer"
else
  echo "no systemd here: have $DIRECTORY/acme/renew run twice a day"
fi
