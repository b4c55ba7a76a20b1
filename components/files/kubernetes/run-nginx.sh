# The first process of Nginx's containers on Kubernetes: Nginx, which a signal lets end its streams, and a loop that has
# it load what has changed in its Secret.
# shellcheck shell=sh
set -u
nginx='' stopping='' seconds=2
trap 'stopping=yes; if [ -n "$nginx" ]; then kill -QUIT "$nginx" 2>/dev/null; fi' TERM INT QUIT
directory=$(dirname "$0")
conf=$directory/nginx.conf

version=$(nginx -v 2>&1 | sed 's|.*/\([0-9.]*\).*|\1|')
if [ "$(printf '%s\n' 1.27.4 "$version" | sort -V | head -n 1)" != 1.27.4 ]; then
  echo "elastic-vllm: Nginx $version can't follow pods that come and go; fix: set nginxImage to 1.27.4 or newer" >&2
  exit 1
fi

# The gateway's upstream: the pods behind a headless Service, whose full name only the pod's own resolver knows.
if [ -n "${DOORS:-}" ]; then
  servers='' domain=svc.cluster.local
  while read -r word rest; do
    case $word in
    nameserver) case $rest in *:*) servers="$servers [$rest]" ;; *) servers="$servers $rest" ;; esac ;;
    search) for each in $rest; do case $each in svc.*) domain=$each && break ;; esac done ;;
    esac
  done </etc/resolv.conf
  printf 'resolver%s valid=5s;\nserver %s.%s:8443 resolve fail_timeout=5s;\n' "$servers" "$DOORS" "$domain" \
    >/tmp/doors.conf
fi

# Workers that take new connections.
workers() {
  for each in /proc/[0-9]*/cmdline; do
    name=$({ tr '\0' ' ' <"$each"; } 2>/dev/null) || continue
    case $name in 'nginx: worker process '*shutting*) ;; 'nginx: worker process '*) echo "$each" ;; esac
  done
}
# A worker that the signal has reached, or that ended, is none of these: then the new ones have what was loaded.
wait_for_others_than() {
  for _ in $(seq 100); do
    left=''
    for each in $(workers); do case " $1 " in *" $each "*) left=yes ;; esac done
    if ! kill -0 "$nginx" 2>/dev/null || { [ -z "$left" ] && [ -n "$(workers)" ]; }; then return; fi
    sleep 0.1
  done
}

# True while vLLM accepts connections on its socket: the pod's containers share a network, whose sockets are listed there.
listening() {
  while read -r _ _ _ flags _ _ _ path; do
    if [ "$path $flags" = "$VLLM_SOCKET 00010000" ]; then return 0; fi
  done </proc/net/unix
  return 1
}
# A signal ends this at once; a sleep in the foreground would delay it.
pause() {
  sleep "$1" &
  wait $!
}

serve() {
  seen=$(readlink "$directory/..data")
  digest=$(cat "$directory/digest")
  sh "$directory/start-nginx.sh" &
  nginx=$!
  # vLLM has this pipe open: its end is seen in a moment, however it came.
  if [ -n "${VLLM_SOCKET:-}" ]; then { read -r _ <"${VLLM_SOCKET%/*}/alive"; kill -QUIT "$nginx" 2>/dev/null; } & fi
  wait_for_others_than ''
  if kill -0 "$nginx" 2>/dev/null; then echo "elastic-vllm: loaded $digest"; fi
  while kill -0 "$nginx" 2>/dev/null; do
    pause "$seconds"
    if [ -n "${VLLM_SOCKET:-}" ] && ! listening; then kill -QUIT "$nginx" 2>/dev/null; fi
    now=$(readlink "$directory/..data")
    if [ "$now" != "$seen" ]; then
      seen=$now digest=$(cat "$directory/digest")
      if nginx -t -q -e stderr -c "$conf"; then
        before=$(workers | tr '\n' ' ')
        kill -HUP "$nginx"
        wait_for_others_than "$before"
        echo "elastic-vllm: loaded $digest"
      else
        echo "elastic-vllm: refused $digest: Nginx keeps what it had loaded before" >&2
      fi
    fi
  done
  wait "$nginx"
}

if [ -z "${VLLM_SOCKET:-}" ]; then
  serve
  exit
fi
# The door listens while vLLM does: a gateway goes to the next pod where a connection is refused, and to no other once it
# was accepted. One that answered for a vLLM that is gone would be the least busy of all, and get every request.
seconds=0.5
while :; do
  until listening || [ -n "$stopping" ]; do pause 0.2; done
  if [ -n "$stopping" ]; then exit 0; fi
  serve
  code=$?
  if [ -n "$stopping" ] || [ "$code" != 0 ]; then exit "$code"; fi
done
