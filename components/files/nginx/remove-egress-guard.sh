# True afterwards: nothing is left of install-egress-guard.sh.
# shellcheck shell=bash
: "${PREFIX:?}"

if [ -e "/etc/systemd/system/$PREFIX-egress.service" ]; then
  systemctl disable --quiet "$PREFIX-egress.service"
  rm "/etc/systemd/system/$PREFIX-egress.service"
fi
nft delete table inet "${PREFIX//-/_}" 2>/dev/null || true
rm -f "/etc/elastic-vllm/$PREFIX.nft"
rmdir --ignore-fail-on-non-empty /etc/elastic-vllm 2>/dev/null || true
echo "packet filter removed"
