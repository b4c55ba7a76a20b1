# True afterwards: the running kernel has an NVIDIA driver, or one is offered for it, so nothing later needs a reboot.
# Else this reboots into the newest kernel. Runs before anything else on a machine of this program's own.
# shellcheck shell=bash
: "${LEAST_DRIVER:?}" "${MARKER:?}"

release=$(uname -r)
if driver_is_enough; then
  rm -f -- "$MARKER"
  echo "driver $(driver_version) works with kernel $release"
  exit 0
fi
refresh_packages
if installable_with_driver "$(module_package "$release")"; then
  rm -f -- "$MARKER"
  echo "driver $LEAST_DRIVER is offered for kernel $release"
  exit 0
fi
flavour=$(kernel_flavour)
newest=("linux-image-$flavour" "$(module_package "$flavour")")
installable_with_driver "${newest[@]}" || fail_as_not_offered "${newest[1]}"

# The kernels that were left by a reboot of this script: never one twice, so it can't go round.
if grep -qsxF -- "$release" "$MARKER"; then
  fail "kernel $release runs again after a reboot into the newest, and no driver is offered for it" "boot the newest kernel by hand (see: ls /boot), then run the update again"
fi
install_with_driver "${newest[@]}" ||
  fail "could not install ${newest[*]}" "look at apt's lines above, then run the update again"
mkdir -p -- "$(dirname "$MARKER")"
echo "$release" >>"$MARKER"

# From here on new connections are refused, so the next command, which tries again and again, can't meet the old kernel.
# This session lives on: Ubuntu's and Debian's ssh.service ends its listener only (KillMode=process). Which of the two
# listens depends on the release. The timer has an accuracy of a minute unless told.
systemctl stop ssh.socket ssh.service 2>/dev/null || true
if ! systemd-run --quiet --on-active=2 --timer-property=AccuracySec=100ms systemctl reboot; then
  systemctl start ssh.socket ssh.service 2>/dev/null || true
  fail "the reboot into the newest kernel could not be started" "reboot the machine, then run the update again"
fi
echo "kernel $release has no driver: rebooting into the newest"
