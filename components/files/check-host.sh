# True afterwards: this server can take the endpoint. Reads only.
# shellcheck shell=bash
: "${LOGIN:?}" "${PREFIX:?}" "${PORT:?}" "${WEIGHTS:?}" "${WEIGHTS_GB:?}" "${WEIGHTS_ON_HOST:?}" "${IMAGES:?}" "${IMAGES_GB:?}"

# Free disk in GB (10^9 bytes) below the nearest directory that exists.
free_gb() {
  local path=$1
  while [ ! -d "$path" ]; do path=$(dirname "$path"); done
  echo "$(($(df --output=avail -B 1 -- "$path" | tail -n 1) / 1000000000))"
}

need_disk() {
  local free
  free=$(free_gb "$1")
  [ "$free" -ge "$2" ] || fail "too little disk for $3: $free GB free at $1, $2 GB needed" "free some, or $4"
}

[ "$(uname -s)" = Linux ] || fail "the server runs $(uname -s)" "use a Linux server"
[ "$(id -u)" = 0 ] || fail "user $LOGIN has no root rights (sshUser)" "use root, or a user with passwordless sudo"

docker_there=no
if command -v docker >/dev/null; then
  docker_there=yes
  if [ "$LOGIN" != root ] && ! runuser -u "$LOGIN" -- docker version >/dev/null 2>&1; then
    docker version >/dev/null 2>&1 || fail "Docker is installed but does not answer" "start it: systemctl start docker"
    fail "user $LOGIN may not use Docker (sshUser)" "run: usermod -aG docker $LOGIN"
  fi
  docker version >/dev/null 2>&1 || fail "Docker is installed but does not answer" "start it: systemctl start docker"
fi

# A listener in /proc/net/tcp{,6}: local port in hexadecimal, state 0A.
if grep -qiE "^ *[0-9]+: [0-9A-F]+:$(printf '%04X' "$PORT") [0-9A-F]+:[0-9A-F]+ 0A " /proc/net/tcp /proc/net/tcp6 2>/dev/null; then
  if [ "$docker_there" = no ] ||
    [ -z "$(docker ps --quiet --filter "name=^/$PREFIX-nginx\$" --filter "publish=$PORT")" ]; then
    owner=$(command -v ss >/dev/null && ss -Hltnp "sport = :$PORT" | grep -o 'users:.*' | head -n 1) || true
    fail "port $PORT is taken${owner:+ by $owner} (httpsPort)" "stop what listens there, or set another httpsPort"
  fi
fi

if [ "$WEIGHTS_ON_HOST" = yes ]; then
  check_weights "$WEIGHTS"
elif [ ! -e "$WEIGHTS/.elastic-vllm-complete" ]; then
  need_disk "$WEIGHTS" "$WEIGHTS_GB" "the weights" "set another weightsDirectory"
fi
for image in $IMAGES; do
  if [ "$docker_there" = yes ] && docker image inspect "$image" >/dev/null 2>&1; then continue; fi
  case $image in
  localhost/*) fail "image $image is not on the server (vllmImage, nginxImage)" "load it there: docker load" ;;
  esac
  root=/var/lib/docker
  if [ "$docker_there" = yes ]; then root=$(docker info --format '{{.DockerRootDir}}'); fi
  need_disk "$root" "$IMAGES_GB" "container images" "move Docker's data-root to a larger disk"
done
echo "checked: port $PORT, disk and rights of this server are fine"
