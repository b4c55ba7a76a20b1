# True afterwards: no container with a network of its own, and no process of this program's users, reaches the cloud's
# metadata, where the VM's keys and tokens are. Root does: Google's guest agent lives from it.
# shellcheck shell=bash
: "${PREFIX:?}" "${USERS:?}"

command -v nft >/dev/null || install_packages nftables
table=${PREFIX//-/_}_metadata
directory=/etc/elastic-vllm
mkdir -p "$directory"
# Deleting the table needs it to exist: the first line makes sure. The file is one transaction.
cat >"$directory/$PREFIX-metadata.nft.new" <<RULES
table inet $table
delete table inet $table
table inet $table {
  chain from_containers {
    type filter hook prerouting priority raw; policy accept;
    iifname != "lo" ip daddr 169.254.169.254 counter drop
    iifname != "lo" ip6 daddr fd20:ce::254 counter drop
  }
  chain from_users {
    type filter hook output priority filter; policy accept;
    meta skuid { $USERS } ip daddr 169.254.169.254 counter drop
    meta skuid { $USERS } ip6 daddr fd20:ce::254 counter drop
  }
}
RULES
mv "$directory/$PREFIX-metadata.nft.new" "$directory/$PREFIX-metadata.nft"
nft -f "$directory/$PREFIX-metadata.nft" ||
  fail "the packet filter for the metadata address can't be set" "the kernel needs nf_tables"
if [ -d /run/systemd/system ]; then
  install_unit "$PREFIX-metadata.service" <<UNIT
[Unit]
Description=elastic-vllm: containers don't reach the cloud's metadata
Before=docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$(command -v nft) -f $directory/$PREFIX-metadata.nft

[Install]
WantedBy=multi-user.target
UNIT
fi
echo "metadata guarded"
