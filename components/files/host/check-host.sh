# True afterwards: this server can take the endpoint. Reads only.
# shellcheck shell=bash
: "${ENGINE:?}" "${LOGIN:?}" "${PREFIX:?}" "${PORT:?}" "${IPV6:?}" "${WEIGHTS:?}" "${WEIGHTS_GB:?}" "${WEIGHTS_ON_HOST:?}" "${IMAGES:?}" "${IMAGES_GB:?}"
: "${BUNDLED_IMAGES_MB?}" "${STORE:?}" "${PROXIED_IMAGES?}"

# Free disk in GB (10^9 bytes) below the nearest directory that exists.
free_gb() {
  local path=$1
  while [ ! -d "$path" ]; do path=$(dirname "$path"); done
  echo "$(($(df --output=avail -B 1 -- "$path" | tail -n 1) / 1000000000))"
}

need_disk() {
  local free
  free=$(free_gb "$1")
  echo "$3: $2 GB at $1, where $free GB are free"
  [ "$free" -ge "$2" ] || fail "too little disk for $3: $free GB free at $1, $2 GB needed" "free some, or $4"
}

[ "$(uname -s)" = Linux ] || fail "the server runs $(uname -s)" "use a Linux server"
[ "$(id -u)" = 0 ] || fail "user $LOGIN has no root rights (sshUser)" "use root, or a user with passwordless sudo"
[ "$IPV6" = no ] || grep -qs . /proc/net/if_inet6 ||
  fail "the server has no IPv6 (ipv6, or an IPv6 address in host or endpointHost)" "enable it there, or set ipv6 to false and use IPv4"

# An update makes more connections than this lets through, and each new attempt prolongs the wait.
for list in /proc/net/xt_recent/*; do
  if [ ! -e "$list" ] || ! command -v ss >/dev/null; then continue; fi
  while read -r peer; do
    peer=$(sed 's/:[0-9]*$//; s/^\[//; s/\]$//; s/^::ffff://' <<<"$peer")
    ! grep -q "^src=$peer " "$list" ||
      fail "the server limits how often $peer may connect (ufw limit, or iptables with -m recent)" "exempt it: ufw insert 1 allow from $peer; echo -$peer >$list"
  done < <(ss -Htn state established | awk '{print $4}' | sort -u)
done

check_engine

# The container of the engine $1 that publishes the port; nothing without one. Docker needs no process for that.
publisher() {
  command -v "$1" >/dev/null || return 0
  "$1" ps --format '{{.Names}} {{.Ports}}' 2>/dev/null | awk -v port=":$PORT->" 'index($0, port) { print $1; exit }' || true
}

holder=""
# The stack's own engine first: the command docker may be Podman's.
for engine in "$ENGINE" docker podman; do
  holder=$(publisher "$engine")
  if [ -n "$holder" ]; then break; fi
done
if [ "$holder" = "$PREFIX-nginx" ]; then
  [ "$engine" = "$ENGINE" ] ||
    fail "port $PORT is taken by this stack's own Nginx, in $engine (containerRuntime)" "set containerRuntime back to $engine and destroy the stack first"
elif [ -n "$holder" ]; then
  fail "port $PORT is taken by the container $holder (httpsPort)" "stop it: $engine stop $holder. Or set another httpsPort"
# A listener in /proc/net/tcp{,6}: local port in hexadecimal, state 0A.
elif grep -qiE "^ *[0-9]+: [0-9A-F]+:$(printf '%04X' "$PORT") [0-9A-F]+:[0-9A-F]+ 0A " /proc/net/tcp /proc/net/tcp6 2>/dev/null; then
  owner=$(command -v ss >/dev/null && ss -Hltnp "sport = :$PORT" | grep -o 'users:.*' | head -n 1) || true
  fail "port $PORT is taken${owner:+ by $owner} (httpsPort)" "stop what listens there, or set another httpsPort"
fi

if [ "$WEIGHTS_ON_HOST" = yes ]; then
  check_weights "$WEIGHTS"
elif [ ! -e "$WEIGHTS/.elastic-vllm-complete" ] && [ ! -e "$WEIGHTS/.elastic-vllm-files" ]; then
  need_disk "$WEIGHTS" "$WEIGHTS_GB" "the weights" "set another weightsDirectory"
fi
{
  read -r images_directory
  read -r images_setting
} < <(images_place)
for image in $IMAGES; do
  if command -v "$ENGINE" >/dev/null && "$ENGINE" image inspect "$image" >/dev/null 2>&1; then continue; fi
  if [ -n "$BUNDLED_IMAGES_MB" ]; then
    # Packed in one place, and unpacked in another to two or three times of that.
    need_disk "$STORE" "$((BUNDLED_IMAGES_MB / 1000 + 1))" "the bundle's images" "give /var/lib a larger disk"
    need_disk "$images_directory" "$((BUNDLED_IMAGES_MB * 3 / 1000 + 1))" "container images" "move $images_setting to a larger disk"
    break
  fi
  case $image in
  localhost/*) fail "image $image is not on the server (vllmImage, nginxImage)" "load it there: $ENGINE load" ;;
  esac
  case " $PROXIED_IMAGES " in *" $image "*) need_engine_proxy "$image" ;; esac
  need_disk "$images_directory" "$IMAGES_GB" "container images" "move $images_setting to a larger disk"
done
echo "checked: port $PORT, disk and rights of this server are fine"
