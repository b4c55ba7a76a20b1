# The first process of Nginx's container: settings that this Nginx alone knows, then Nginx itself.
# shellcheck shell=sh
set -eu
mkdir -p /tmp/generated
rm -f /tmp/generated/*
version=$(nginx -v 2>&1 | sed 's|.*/\([0-9.]*\).*|\1|')
# So that a reload leaves idle connections open for as long as clients would use them again: theirs end after 5 s.
if [ "$(printf '%s\n' 1.27.4 "$version" | sort -V | head -n 1)" = 1.27.4 ]; then
  echo 'keepalive_min_timeout 15s;' >/tmp/generated/keepalive.conf
fi
# Mozilla's curves; the first one, which holds against quantum computers too, is OpenSSL's from 3.5 on.
curves=X25519:prime256v1:secp384r1
openssl=$(nginx -V 2>&1 | sed -n 's/^built with OpenSSL \([0-9.]*\).*/\1/p')
if [ "$(printf '%s\n' 3.5.0 "$openssl" | sort -V | head -n 1)" = 3.5.0 ]; then curves=X25519MLKEM768:$curves; fi
echo "ssl_ecdh_curve $curves;" >/tmp/generated/curves.conf
# A file that somebody has deleted costs its lines, never the endpoint: Nginx may not make a new one.
for name in access error; do
  if [ -w "/var/log/elastic-vllm/$name.log" ]; then
    case $name in access) format=' audit' ;; error) format=' warn' ;; esac
    echo "${name}_log /var/log/elastic-vllm/$name.log$format;" >>/tmp/generated/logs.conf
  fi
done
# Nginx killed leaves its socket behind, and would not start again beside it.
rm -f /run/elastic-vllm-metrics/nginx.sock
# A worker for each core that it may use, because more only wait for each other, and at most four, which carry thousands
# of streams: one a core, and two while it reloads, would need more memory on 208 cores than the container may have.
workers=$(nproc)
if [ "$workers" -gt 4 ]; then workers=4; fi
# -e: before its configuration is read, Nginx would open a log file, and the root is read-only.
exec nginx -e stderr -c "$(dirname "$0")/nginx.conf" -g "daemon off; worker_processes $workers;"
