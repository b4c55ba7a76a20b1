# Defines check_engine: fails unless ENGINE, where it is on this server, is of a kind that the stack can run in. And
# images_place: prints the directory where it keeps images unpacked, and in a second line what moves that. And
# need_engine_proxy IMAGE. Reads only.
# shellcheck shell=bash
: "${ENGINE:?}" "${LOGIN:?}"

install_docker="install Docker from the distribution (docker.io) or from download.docker.com"

# Runs a command as the SSH user, with that user's own configuration of Docker.
as_login() {
  if [ "$LOGIN" = root ]; then "$@"; else runuser -u "$LOGIN" -- env HOME="$(getent passwd "$LOGIN" | cut -d : -f 6)" "$@"; fi
}

# True if dockerd was told KEY=false, in its configuration file or on its command line.
docker_without() {
  local arguments file
  arguments=$(tr '\0' '\n' <"/proc/$(cat /run/docker.pid 2>/dev/null)/cmdline" 2>/dev/null) || true
  file=$(sed -n 's/^--config-file=//p' <<<"$arguments")
  grep -qx -- "--$1=false" <<<"$arguments" ||
    grep -qsE "\"$1\"[[:space:]]*:[[:space:]]*false" "${file:-/etc/docker/daemon.json}"
}

check_engine() {
  if command -v "$ENGINE" >/dev/null; then
    "check_$ENGINE"
  elif [ -x "/snap/bin/$ENGINE" ]; then
    fail "$ENGINE is a snap, which does not see the server's directories" "run: snap remove $ENGINE; then $install_docker"
  elif ! command -v apt-get >/dev/null; then
    fail "$ENGINE is not on the server (containerRuntime), and only Debian and Ubuntu are supported" "install it there by hand"
  fi
}

check_podman() {
  podman version >/dev/null 2>&1 || fail "Podman is installed but does not answer" "see: podman version"
  [ "$(podman info --format '{{.Host.ServiceIsRemote}}' 2>/dev/null)" != true ] ||
    fail "Podman's client on the server talks to another machine" "unset CONTAINER_HOST, and see: podman system connection list"
}

check_docker() {
  local user endpoint version os system runtime root security
  # podman-docker: a script of Docker's name that runs Podman.
  if docker --version 2>/dev/null | grep -i podman >/dev/null; then
    fail "docker on this server is Podman (podman-docker)" "set containerRuntime to podman, or $install_docker"
  fi
  if grep -qs '^[^#]*DOCKER_HOST=' /etc/environment; then
    fail "DOCKER_HOST is set for every user (/etc/environment), so Docker's client may talk to another machine" "remove it there"
  fi
  for user in as_login ""; do
    endpoint=$($user docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null) || continue
    case $endpoint in
    unix:///var/run/docker.sock | unix:///run/docker.sock) ;;
    unix:///run/user/*) fail "Docker runs rootless ($endpoint)" "use Docker's system service: docker context use default" ;;
    *) fail "Docker's client on the server talks to $endpoint" "unset DOCKER_HOST, or run: docker context use default" ;;
    esac
  done
  if ! as_login docker version >/dev/null 2>&1; then
    docker version >/dev/null 2>&1 || fail "Docker is installed but does not answer" "start it: systemctl start docker"
    fail "user $LOGIN may not use Docker (sshUser)" "run: usermod -aG docker $LOGIN"
  fi
  {
    read -r version
    read -r os
    read -r system
    read -r runtime
    read -r root
    read -r security
  } < <(docker info --format '{{.ServerVersion}}
{{.OSType}}
{{.OperatingSystem}}
{{.DefaultRuntime}}
{{.DockerRootDir}}
{{.SecurityOptions}}') || fail "Docker tells nothing of itself" "see: docker info"
  case $root in
  /var/snap/*) fail "Docker is a snap, which does not see the server's directories" "run: snap remove docker; then $install_docker" ;;
  esac
  case $security in
  *name=rootless*) fail "Docker runs rootless, so the server's packet filter does not see its containers" "use Docker's system service" ;;
  *name=selinux*) fail "Docker confines containers with SELinux, which is not supported" "set selinux-enabled to false (daemon.json), or containerRuntime to podman" ;;
  esac
  case $system in
  *"Docker Desktop"*) fail "this is Docker Desktop, whose containers run in another machine" "$install_docker" ;;
  esac
  [ "$os" = linux ] || fail "Docker runs containers for $os" "use a Linux server"
  [ "$(printf '%s\n' 20.10 "$version" | sort -V | head -n 1)" = 20.10 ] ||
    fail "Docker $version is too old: 20.10 or later is needed" "update it"
  case $runtime in
  *kata* | *runsc* | *gvisor* | *sysbox*) fail "Docker runs containers in $runtime by default, where vLLM's socket can't be shared" "set default-runtime to runc (daemon.json)" ;;
  esac
  if docker_without iptables; then
    ! docker_without userland-proxy ||
      fail "Docker publishes no port: iptables and userland-proxy are both off" "set one of them to true (daemon.json)"
    echo "note: Docker's iptables is off, so Nginx's log shows Docker's address for every client"
  elif docker_without ip-forward && [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 0 ]; then
    fail "the server forwards nothing to containers: ip-forward is off" "set net.ipv4.ip_forward to 1 (sysctl)"
  fi
}

# True if the engine pulls images through a proxy: it says so, or the files that it starts with do.
engine_has_proxy() {
  local files unit=docker
  if [ "$ENGINE" = docker ] && command -v docker >/dev/null && docker version >/dev/null 2>&1; then
    [ -n "$(docker info --format '{{.HTTPSProxy}}')" ]
    return
  fi
  files=(/etc/docker/daemon.json /etc/default/docker)
  if [ "$ENGINE" = podman ]; then unit=podman files=(/etc/containers/containers.conf /etc/containers/containers.conf.d); fi
  grep -rqsiE '^[^#]*https[_-]proxy' "${files[@]}" /{etc,run,usr/lib}/systemd/system/"$unit.service"{,.d} \
    /etc/systemd/system.conf /etc/systemd/system.conf.d
}

# Fails if the engine would pull an image from behind a proxy without knowing that.
need_engine_proxy() {
  local unit=docker
  [ "$ENGINE" = docker ] || unit=podman
  if engine_has_proxy; then return; fi
  # A mirror of Docker's own registry is likely to be this side of the proxy.
  case ${1#docker.io/} in
  *.*/* | *:*/*) ;;
  *) [ "$ENGINE" != docker ] || [ -z "$(docker info --format '{{.RegistryConfig.Mirrors}}' 2>/dev/null | tr -d '[]')" ] || return 0 ;;
  esac
  fail "$ENGINE must pull $1, and knows no proxy: it does not use downloadProxy" "write into /etc/systemd/system/$unit.service.d/proxy.conf: [Service] and, in a second line, Environment=HTTPS_PROXY=http://HOST:PORT; then run: systemctl daemon-reload; systemctl restart $unit (where it is installed); or name the registry in downloadNoProxy if the server reaches it directly"
}

images_place() {
  local root=/var/lib/docker
  if [ "$ENGINE" = podman ]; then
    if command -v podman >/dev/null; then podman info --format '{{.Store.GraphRoot}}'; else echo /var/lib/containers; fi
    echo "graphroot (storage.conf)"
    return
  fi
  if ! command -v docker >/dev/null; then
    echo "$root"
  elif docker info --format '{{.DriverStatus}}' | grep 'io\.containerd\.snapshotter' >/dev/null; then
    # The containerd image store keeps images in containerd's directory, not in Docker's.
    case $(docker info --format '{{with .Containerd}}{{.Address}}{{end}}' 2>/dev/null) in
    */docker/containerd/*) echo "$(docker info --format '{{.DockerRootDir}}')/containerd/daemon" ;; # Docker's own
    *)
      root=$(containerd config dump 2>/dev/null | sed -n "s/^root = ['\"]\(.*\)['\"]\$/\1/p")
      echo "${root:-/var/lib/containerd}"
      echo "root (/etc/containerd/config.toml)"
      return
      ;;
    esac
  else
    docker info --format '{{.DockerRootDir}}'
  fi
  echo "data-root (daemon.json)"
}
