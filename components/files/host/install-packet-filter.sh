# Defines `put FILE` and `install_filter NAME DESCRIPTION BEFORE`. True after install_filter: what the files
# /etc/elastic-vllm/NAME.* say (packet-filter.sh) is in place, and where there is systemd it stays so, also over a
# reboot: from before the unit BEFORE on. With CHECK=yes neither changes anything: they print what is missing, a line
# each.
# shellcheck shell=bash
: "${CHECK:?}" "${PREFIX:?}" "${PROGRAM:?}"

changed=no

# Writes a file out of standard input.
put() {
  if [ "$CHECK" = yes ]; then
    cmp -s - "$1" || echo "$1"
    return
  fi
  mkdir -p "$(dirname "$1")"
  cat >"$1.new"
  if cmp -s "$1.new" "$1"; then rm -- "$1.new"; else mv -- "$1.new" "$1" && changed=yes; fi
}

install_filter() {
  local name=$1 program=/etc/elastic-vllm/$PREFIX-packet-filter.sh rules_changed
  put "$program" <<<"$PROGRAM"
  rules_changed=$changed
  if [ -d /run/systemd/system ]; then
    changed=no
    put "/etc/systemd/system/$name.service" <<UNIT
[Unit]
Description=elastic-vllm: $2
After=nftables.service firewalld.service ufw.service
Before=$3
StartLimitIntervalSec=0

[Service]
ExecStartPre=/bin/bash $program host $name
ExecStart=/bin/bash $program watch $name
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
UNIT
  fi
  if [ "$CHECK" = yes ]; then
    [ ! -e "$program" ] || /bin/bash "$program" missing "$name"
    [ ! -d /run/systemd/system ] || systemctl is-active --quiet "$name.service" || echo "service $name"
    return
  fi
  /bin/bash "$program" set "$name"
  [ -z "$(/bin/bash "$program" missing "$name")" ] ||
    fail "the packet filter $name can't be set" "the kernel needs nf_tables, nf_conntrack and policy routing"
  if [ -d /run/systemd/system ]; then
    # Only for a unit that has changed: a reload of systemd can take the GPUs away from containers that run
    # (NVIDIA/nvidia-docker#1730).
    [ "$changed" = no ] || systemctl daemon-reload
    systemctl enable --quiet "$name.service"
    if [ "$rules_changed$changed" = nono ]; then systemctl start "$name.service"; else systemctl restart "$name.service"; fi
  fi
}
