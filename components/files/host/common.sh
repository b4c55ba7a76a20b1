# In front of every script: strict mode, and how to fail with a cause and a fix.
# shellcheck shell=bash
set -euo pipefail
# Scripts look for words in what programs print.
export LC_ALL=C
fail() {
  printf 'elastic-vllm: %s\n  fix: %s\n' "$1" "$2" >&2
  exit 1
}
# DOWNLOADS is a directory that says how this server fetches (configure-downloads.sh): empty or absent where it just does.
directly="directly${DOWNLOADS:+, or through a proxy (downloadProxy)}"
# Has the file hold the CAs of the system, as they are now, and those of the stack.
trust_downloads() {
  local new
  [ -s "$DOWNLOADS/ca.pem" ] || return 0
  new=$(mktemp "$DOWNLOADS/trusted.XXXXXX")
  cat /etc/ssl/certs/ca-certificates.crt "$DOWNLOADS/ca.pem" >"$new" 2>/dev/null || true
  chmod 0644 "$new"
  mv -- "$new" "$DOWNLOADS/trusted.pem"
}
# Runs a command with the variables for what it fetches; they may hold a password.
fetching() (
  if [ -e "${DOWNLOADS:-}/environment" ]; then
    trust_downloads
    while IFS= read -r each; do export "${each?}"; done <"$DOWNLOADS/environment"
  fi
  exec "$@"
)
# apt-get, without those variables: services that a package starts would inherit them. The server's own settings of apt
# come first.
apt_get() (
  export DEBIAN_FRONTEND=noninteractive
  if [ -z "${PACKAGES:-}" ] && [ -e "${DOWNLOADS:-}/apt.conf" ]; then
    trust_downloads
    export APT_CONFIG=$DOWNLOADS/apt.conf
    no_proxy=$(cat "$DOWNLOADS/exceptions")
    export no_proxy
  fi
  exec apt-get "${apt_options[@]}" "$@"
)
# Packages come from the distribution's repositories as configured here, or, with PACKAGES, from that directory of
# them alone: a list of sources and a state of apt's own, so nothing that is configured is asked or changed.
apt_options=(-q -y --no-install-recommends -o DPkg::Lock::Timeout=300)
apt_advice="look at apt's lines above: the server must reach its package repositories, $directly"
if [ -n "${PACKAGES:-}" ]; then
  apt_state=/var/lib/elastic-vllm/apt
  apt_options+=(-o "Dir::Etc::sourcelist=$apt_state/bundle.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt_state/lists"
    -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=")
  apt_advice="the bundle lacks them, or others that they need: build it with --probe of this server as it is"
fi
# The directory as apt wants it: with an index. Its files were checked when they came.
index_packages() {
  local deb
  mkdir -p "$apt_state/lists/partial"
  for deb in "$PACKAGES"/*.deb; do
    dpkg-deb --field "$deb"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$(basename "$deb")" "$(stat -c %s "$deb")" "$(sha256sum <"$deb" | cut -d ' ' -f 1)"
  done >"$PACKAGES/Packages"
  echo "deb [trusted=yes] file:$PACKAGES ./" >"$apt_state/bundle.list"
}
# Installs packages; standard input is left for what comes behind the script.
install_packages() {
  command -v apt-get >/dev/null ||
    fail "missing here: $*; only Debian and Ubuntu are supported" "install them by hand, then run the update again"
  if [ -n "${PACKAGES:-}" ]; then
    [ -n "$(find "$PACKAGES" -name '*.deb' -print -quit 2>/dev/null)" ] ||
      fail "missing here: $*; the bundle has no packages" "install them by hand, or build the bundle with --probe"
    index_packages
  fi
  echo "installing $*"
  # shellcheck disable=SC2119 # it takes options
  apt_update </dev/null || fail "the lists of packages can't be read" "$apt_advice"
  apt_get install "$@" </dev/null ||
    fail "could not install $*" "$apt_advice"
}
# apt's own patience does not hold for `update`, and a new machine looks for updates by itself.
# shellcheck disable=SC2120 # gpu-driver.sh gives it options
apt_update() {
  local end=$((SECONDS + 300)) output
  until output=$(apt_get update "$@" 2>&1); do
    if [ "$SECONDS" -ge "$end" ] || ! grep 'Could not get lock' <<<"$output" >/dev/null; then
      [ -z "$output" ] || echo "$output" >&2
      return 1
    fi
    echo "waiting for another apt to end"
    sleep 3
  done
}
# Makes and enables a systemd unit, which comes on standard input. One that is there already is left alone: a reload of
# systemd can take the GPUs away from containers that run (NVIDIA/nvidia-docker#1730).
install_unit() {
  local unit=/etc/systemd/system/$1
  cat >"$unit.new"
  if cmp -s "$unit.new" "$unit" && systemctl is-enabled --quiet "$1"; then
    rm -- "$unit.new"
    return
  fi
  mv -- "$unit.new" "$unit"
  systemctl daemon-reload
  systemctl enable --quiet "$1"
}
