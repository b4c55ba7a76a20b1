# True afterwards: Nginx opens no connection, to the host as to anywhere else. Two walls keep it from that: a table of the
# host drops what would begin one on INTERFACE, and a table in the network of Nginx's container, which no flush of the
# host's rules reaches, lets nothing out but answers from PORT. The second one is there while the container runs.
# Needs install-packet-filter.sh in front.
# shellcheck shell=bash
: "${ENGINE:?}" "${PREFIX:?}" "${INTERFACE:?}" "${CONTAINER:?}" "${PORT:?}"

name=$PREFIX-egress
table=${PREFIX//-/_}
# Deleting the table needs it to exist: the first line makes sure. The file is one transaction.
put "/etc/elastic-vllm/$name.nft" <<RULES
table inet $table
delete table inet $table
table inet $table {
  chain no_egress {
    type filter hook prerouting priority filter; policy accept;
    iifname "$INTERFACE" ct state new counter drop
  }
}
RULES
# Without a memory of connections: streams that are under way when it is set again go on. None begins without a SYN.
put "/etc/elastic-vllm/$name.inside" <<RULES
table inet $table
delete table inet $table
table inet $table {
  chain answers_only {
    type filter hook output priority filter; policy drop;
    oifname "lo" accept
    tcp sport $PORT tcp flags & (syn | ack) != syn accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
  }
}
RULES
put "/etc/elastic-vllm/$name.container" <<<"$ENGINE $CONTAINER"
starts=docker.service
[ "$ENGINE" != podman ] || starts=podman-restart.service
install_filter "$name" "Nginx opens no connection" "$starts"
[ "$CHECK" = yes ] || echo "packet filter set for $INTERFACE and $CONTAINER"
