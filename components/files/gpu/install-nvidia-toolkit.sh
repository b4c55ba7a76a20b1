# True afterwards: NVIDIA's container toolkit is installed, and Docker is configured for it if ENGINE is docker (Podman
# needs the driver first: configure-cdi.sh). An installed one newer than TOOLKIT_ABOVE stays unchanged. This script
# should run before Docker first starts, so that nothing has to be restarted.
# shellcheck shell=bash
: "${directly?}"
: "${ENGINE:?}" "${TOOLKIT_PACKAGES:?}" "${TOOLKIT_VERSION:?}" "${TOOLKIT_ABOVE:?}"
: "${TOOLKIT_REPOSITORY:?}" "${TOOLKIT_KEY:?}" "${TOOLKIT_FINGERPRINT:?}"

read -r -a toolkit_packages <<<"$TOOLKIT_PACKAGES"
# NVIDIA's own names: apt refuses one repository with two keyrings.
keyring=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg
list=sources.list.d/nvidia-container-toolkit.list

toolkit_version() {
  command -v nvidia-ctk >/dev/null && nvidia-ctk --version | grep -oE '[0-9]+(\.[0-9]+)+' | sed -n 1p
}

toolkit_is_enough() {
  local version
  version=$(toolkit_version) && [ "$version" != "$TOOLKIT_ABOVE" ] &&
    [ "$(printf '%s\n' "$version" "$TOOLKIT_ABOVE" | sort -V | tail -n 1)" = "$version" ]
}

install_toolkit() {
  local work missing=() fingerprints
  command -v apt-get >/dev/null ||
    fail "NVIDIA's container toolkit above $TOOLKIT_ABOVE is missing, and this script can install it only on Debian and Ubuntu" "install nvidia-container-toolkit by hand"
  if [ -n "${PACKAGES:-}" ]; then
    install_packages "${toolkit_packages[@]/%/=$TOOLKIT_VERSION}"
    toolkit_is_enough || fail "NVIDIA's container toolkit $TOOLKIT_VERSION is installed, but does not work" "see: nvidia-ctk --version"
    return
  fi
  command -v gpg >/dev/null || missing+=(gpg)
  command -v curl >/dev/null || missing+=(curl ca-certificates)
  if [ "${#missing[@]}" -gt 0 ]; then install_packages "${missing[@]}"; fi
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # expanded now: this directory
  trap "rm -rf -- '$work'" EXIT
  fetching curl -fsSL --retry 3 --connect-timeout 10 --max-time 60 -o "$work/key" "$TOOLKIT_KEY" ||
    fail "NVIDIA's package repository can't be reached: $TOOLKIT_KEY" "let the server reach it, $directly, or install nvidia-container-toolkit above $TOOLKIT_ABOVE by hand"
  # All primary keys in the file: a second one would be trusted too.
  fingerprints=$(GNUPGHOME=$work gpg --batch --quiet --with-colons --show-keys "$work/key" 2>/dev/null |
    awk -F: '$1 == "pub" { primary = 1 } $1 == "fpr" && primary { print $10; primary = 0 }') || true
  [ "$fingerprints" = "$TOOLKIT_FINGERPRINT" ] ||
    fail "the key of NVIDIA's package repository is not the known one: ${fingerprints//$'\n'/ } instead of $TOOLKIT_FINGERPRINT" "find out whether NVIDIA has announced a new key; until then install nvidia-container-toolkit by hand"
  GNUPGHOME=$work gpg --batch --quiet --yes --dearmor --output "$work/keyring" "$work/key"
  install -D -m 0644 -- "$work/keyring" "$keyring"
  # apt itself fills in $(ARCH).
  echo "deb [signed-by=$keyring] $TOOLKIT_REPOSITORY/\$(ARCH) /" >"/etc/apt/$list"
  # Keeps unattended upgrades, and NVIDIA's other repositories, from changing the version (apt_preferences(5): from 990
  # on a version is preferred to all others, below 1000 nothing is downgraded).
  cat >/etc/apt/preferences.d/elastic-vllm-nvidia-toolkit <<PREFERENCES
Package: ${toolkit_packages[*]}
Pin: version $TOOLKIT_VERSION
Pin-Priority: 995
PREFERENCES
  # This repository alone: errors of others do not matter here.
  apt_update -o APT::Update::Error-Mode=any -o "Dir::Etc::sourcelist=$list" \
    -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0 ||
    fail "NVIDIA's package repository can't be read: $TOOLKIT_REPOSITORY" "look at apt's lines above, then run the update again"
  apt_get install --allow-change-held-packages \
    "${toolkit_packages[@]/%/=$TOOLKIT_VERSION}" ||
    fail "could not install NVIDIA's container toolkit $TOOLKIT_VERSION" "look at apt's lines above, then run the update again"
  toolkit_is_enough || fail "NVIDIA's container toolkit $TOOLKIT_VERSION is installed, but does not work" "see: nvidia-ctk --version"
}

# Asks Docker itself if it runs, because it reads its configuration only at its start.
docker_knows_toolkit() {
  if docker version >/dev/null 2>&1; then
    docker info --format '{{range $name, $_ := .Runtimes}}{{println $name}}{{end}}' | grep -x nvidia >/dev/null
  else
    grep -qs '"nvidia"' /etc/docker/daemon.json
  fi
}

toolkit_is_new=no
if ! toolkit_is_enough; then
  install_toolkit
  toolkit_is_new=yes
fi
if [ "$ENGINE" = docker ] && { [ "$toolkit_is_new" = yes ] || ! docker_knows_toolkit; }; then
  output=$(nvidia-ctk runtime configure --runtime=docker 2>&1) ||
    fail "Docker can't be configured for NVIDIA's container toolkit: $(tail -n 1 <<<"$output")" "correct /etc/docker/daemon.json, then run the update again"
  if docker version >/dev/null 2>&1; then
    [ -d /run/systemd/system ] || fail "Docker must be restarted to know the GPUs" "restart dockerd, then run the update again"
    echo "restarting Docker, so that it knows the GPUs"
    systemctl restart docker || fail "Docker does not start again" "see: journalctl -u docker"
  fi
fi
echo "NVIDIA's container toolkit $(toolkit_version) is installed for $ENGINE"
