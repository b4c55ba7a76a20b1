# True afterwards: Docker works here, and curl and nft are there. Installs from the distribution what is missing.
# shellcheck shell=bash
: "${LOGIN:?}"

packages=()
command -v docker >/dev/null || packages+=(docker.io)
command -v curl >/dev/null || packages+=(curl ca-certificates)
command -v nft >/dev/null || packages+=(nftables)
if [ "${#packages[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null ||
    fail "missing here: ${packages[*]}; only Debian and Ubuntu are installed to" "install Docker, curl and nftables by hand"
  echo "installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt_update || fail "the lists of packages can't be read" "look at apt's lines above: the server must reach its package repositories"
  apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 "${packages[@]}" ||
    fail "could not install ${packages[*]}" "look at apt's lines above: the server must reach its package repositories"
fi
if ! docker version >/dev/null 2>&1; then
  if [ -d /run/systemd/system ]; then systemctl enable --now docker; fi
  for _ in $(seq 30); do
    docker version >/dev/null 2>&1 && break
    sleep 1
  done
  docker version >/dev/null 2>&1 || fail "Docker is installed but does not answer" "see: journalctl -u docker"
fi
if [ "$LOGIN" != root ] && ! id -nG "$LOGIN" | grep -qw docker; then usermod -aG docker "$LOGIN"; fi
echo "Docker $(docker version --format '{{.Server.Version}}') works"
