# True afterwards: the running kernel has an NVIDIA driver, or one is offered for it, so nothing later needs a reboot.
# Otherwise it reboots into the newest kernel. It runs before anything else on a machine that this program created.
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

# The marker lists the kernels that this script has rebooted from: it leaves none twice, so it can't loop.
if grep -qsxF -- "$release" "$MARKER"; then
  fail "kernel $release runs again after a reboot into the newest, and no driver is offered for it" "boot the newest kernel by hand (see: ls /boot), then run the update again"
fi
install_with_driver "${newest[@]}" ||
  fail "could not install ${newest[*]}" "look at apt's lines above, then run the update again"
mkdir -p -- "$(dirname "$MARKER")"
echo "$release" >>"$MARKER"

# Refuse new connections from here on, so that the next command, which retries, can't reach the old kernel. This session
# survives: Ubuntu's and Debian's ssh.service ends only its listener (KillMode=process). Which of the two units listens
# depends on the release. The timer's accuracy is a minute by default.
systemctl stop ssh.socket ssh.service 2>/dev/null || true
if ! systemd-run --quiet --on-active=2 --timer-property=AccuracySec=100ms systemctl reboot; then
  systemctl start ssh.socket ssh.service 2>/dev/null || true
  fail "the reboot into the newest kernel could not be started" "reboot the machine, then run the update again"
fi
echo "kernel $release has no driver: rebooting into the newest"
