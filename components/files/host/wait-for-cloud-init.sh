# True afterwards: cloud-init has done its work, so it changes neither users nor packages any more.
# shellcheck shell=bash

if command -v cloud-init >/dev/null; then
  echo "waiting for cloud-init"
  code=0
  output=$(cloud-init status --wait --long) || code=$?
  # 2 is "done, with warnings" (cloudinit.readthedocs.io, "Exported errors").
  case $code in
  0 | 2) ;;
  *) fail "cloud-init failed on the new VM: $(tr '\n' ' ' <<<"$output")" "see there: /var/log/cloud-init-output.log" ;;
  esac
fi
echo "booted: $(uname -r), up for $(cut -d . -f 1 /proc/uptime) s"
