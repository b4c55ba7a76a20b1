# True afterwards: nothing is left of guard-egress.sh.
# shellcheck shell=bash
: "${PREFIX:?}"

name=$PREFIX-egress
if [ -e "/etc/systemd/system/$name.service" ]; then
  systemctl disable --quiet --now "$name.service"
  rm "/etc/systemd/system/$name.service"
fi
nft delete table inet "${PREFIX//-/_}" 2>/dev/null || true
rm -f "/etc/elastic-vllm/$name".* "/etc/elastic-vllm/$PREFIX-packet-filter.sh"
rmdir --ignore-fail-on-non-empty /etc/elastic-vllm 2>/dev/null || true
echo "packet filter removed"
