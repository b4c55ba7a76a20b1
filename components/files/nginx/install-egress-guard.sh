# True afterwards: the host drops every packet with which a container on INTERFACE would begin a connection,
# to the host as to anywhere else. Answers pass. A table of its own, so no other firewall is touched.
# shellcheck shell=bash
: "${ENGINE:?}" "${PREFIX:?}" "${INTERFACE:?}"

table=${PREFIX//-/_}
directory=/etc/elastic-vllm
mkdir -p "$directory"
# Deleting the table needs it to exist: the first line makes sure. The file is one transaction.
cat >"$directory/$PREFIX.nft.new" <<RULES
table inet $table
delete table inet $table
table inet $table {
  chain no_egress {
    type filter hook prerouting priority filter; policy accept;
    iifname "$INTERFACE" ct state new counter drop
  }
}
RULES
mv "$directory/$PREFIX.nft.new" "$directory/$PREFIX.nft"
nft -f "$directory/$PREFIX.nft" ||
  fail "the packet filter for Nginx's network can't be set" "the kernel needs nf_tables and nf_conntrack"
if [ -d /run/systemd/system ]; then
  starts=docker.service
  [ "$ENGINE" != podman ] || starts=podman-restart.service
  install_unit "$PREFIX-egress.service" <<UNIT
[Unit]
Description=elastic-vllm: Nginx's network begins no connection
Before=$starts

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$(command -v nft) -f $directory/$PREFIX.nft

[Install]
WantedBy=multi-user.target
UNIT
fi
echo "packet filter set for $INTERFACE"
