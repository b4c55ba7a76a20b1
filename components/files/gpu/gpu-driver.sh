# Functions shared by prepare-kernel.sh and install-gpu-driver.sh: the installed driver, and Ubuntu's packages of it.
# shellcheck shell=bash
: "${apt_advice?}"
: "${LEAST_DRIVER:?}"

# Fails if no driver works; nvidia-smi prints its error on standard output.
driver_version() {
  command -v nvidia-smi >/dev/null &&
    nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n 1p
}

driver_is_enough() {
  local version
  version=$(driver_version) && [[ $version =~ ^[0-9]+(\.[0-9]+)+$ ]] && [ "${version%%.*}" -ge "$LEAST_DRIVER" ]
}

# Package of modules that Ubuntu builds and signs, so Secure Boot stays on; DKMS would build unsigned ones. It is for
# one kernel (6.17.0-1021-gcp), or for a flavour (gcp), whose kernel updates then include the modules.
module_package() { echo "linux-modules-nvidia-$LEAST_DRIVER-server-open-$1"; }

# Libraries, nvidia-persistenced and nvidia-smi: Ubuntu's server branch, without graphics.
driver_packages=("nvidia-headless-no-dkms-$LEAST_DRIVER-server-open" "nvidia-utils-$LEAST_DRIVER-server")

# The kernel package whose updates this machine follows: gcp, generic-hwe-24.04, ...
kernel_flavour() {
  local running
  running=$(uname -r)
  running=${running##*-}
  {
    dpkg-query -W -f '${db:Status-Status} ${Package}\n' 'linux-image-*' 2>/dev/null |
      sed -n "s/^installed linux-image-\($running\(-.*\)\{0,1\}\)\$/\1/p" || true
    echo "$running"
  } | sed -n 1p
}

by_hand="install NVIDIA's driver $LEAST_DRIVER or newer by hand, then run the update again"

# Without its error mode apt-get succeeds even if no repository answers. A repository that is not needed may fail.
refresh_packages() {
  command -v apt-get >/dev/null ||
    fail "no working NVIDIA driver $LEAST_DRIVER or newer here, and only Ubuntu's can be installed" "$by_hand"
  repositories_answer=yes
  [ -z "${PACKAGES:-}" ] || index_packages
  apt_update -o APT::Update::Error-Mode=any || repositories_answer=no
}

install_with_driver() { apt_get install "$@" "${driver_packages[@]}"; }

# A simulation, because a name in the lists is not enough: the module of an older kernel may need an older library.
installable_with_driver() { install_with_driver --simulate "$@" >/dev/null 2>&1; }

fail_as_not_offered() {
  [ "$repositories_answer" = yes ] ||
    fail "the driver's packages are not there, and a package repository can't be reached" "$apt_advice"
  fail "no driver for this machine: $1 can't be installed here" "on Ubuntu enable the component restricted; elsewhere $by_hand"
}
