# True afterwards: the files in DOWNLOADS say how this server fetches: through which proxy, which hosts it asks directly all
# the same, and which CAs it trusts for that besides the system's (common.sh). The proxy's address, which may hold a
# password, comes on standard input. Without proxy and CA there are none.
# shellcheck shell=bash
: "${DOWNLOADS:?}" "${EXCEPTIONS:?}" "${CA?}"

proxy=$(cat)
if [ -z "$proxy$CA" ]; then
  rm -rf -- "$DOWNLOADS"
  echo "this server fetches directly"
  exit 0
fi
umask 077
install -d -m 0755 -- "$(dirname "$DOWNLOADS")" "$DOWNLOADS"
# Each file is whole at any time: a renewal of a certificate may read it meanwhile.
put() {
  cat >"$DOWNLOADS/$2.new"
  chmod "$1" "$DOWNLOADS/$2.new"
  mv -- "$DOWNLOADS/$2.new" "$DOWNLOADS/$2"
}
exceptions=$EXCEPTIONS,$(uname -n)
put 0644 exceptions <<<"$exceptions"
put 0644 ca.pem < <(printf '%s' "$CA")
{
  if [ -n "$proxy" ]; then printf '%s\n' "http_proxy=$proxy" "https_proxy=$proxy" "no_proxy=$exceptions"; fi
  if [ -n "$CA" ]; then printf '%s\n' {SSL_CERT_FILE,REQUESTS_CA_BUNDLE,CURL_CA_BUNDLE,PIP_CERT}="$DOWNLOADS/trusted.pem"; fi
} | put 0600 environment
{
  if [ -n "$proxy" ]; then printf 'Acquire::%s::Proxy "%s";\n' http "$proxy" https "$proxy"; fi
  if [ -n "$CA" ]; then echo "Acquire::https::CAInfo \"$DOWNLOADS/trusted.pem\";"; fi
} | put 0600 apt.conf
if [ -n "$proxy" ]; then echo "this server fetches through the proxy"; fi
if [ -n "$CA" ]; then echo "it trusts $(grep -c BEGIN <<<"$CA") further CAs"; fi
