# True afterwards: no container with a network of its own, and no process of this program's users, reaches the cloud's
# metadata, where the VM's keys and tokens are. Root does: Google's guest agent lives from it. Two walls: a table of the
# packet filter, and rules of routing, which no flush of the packet filter reaches. Needs install-packet-filter.sh in front.
# shellcheck shell=bash
: "${CHECK:?}" "${PREFIX:?}" "${USERS:?}"

if [ "$CHECK" = no ]; then command -v nft >/dev/null || install_packages nftables; fi
name=$PREFIX-metadata
table=${PREFIX//-/_}_metadata
# Deleting the table needs it to exist: the first line makes sure. The file is one transaction.
put "/etc/elastic-vllm/$name.nft" <<RULES
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
    meta skuid { ${USERS// /, } } ip daddr 169.254.169.254 counter drop
    meta skuid { ${USERS// /, } } ip6 daddr fd20:ce::254 counter drop
  }
}
RULES
# Below the table `local` (priority 0). What this machine itself sends comes from `lo`, and leaps over the ban.
put "/etc/elastic-vllm/$name.rules" < <(
  for metadata in "-4 169.254.169.254" "-6 fd20:ce::254"; do
    read -r family address <<<"$metadata"
    priority=1690
    for user in $USERS; do
      echo "$family $priority to $address uidrange $user-$user prohibit"
      priority=$((priority + 1))
    done
    echo "$family 1699 nop"
    echo "$family 1697 to $address iif lo goto 1699"
    echo "$family 1698 to $address prohibit"
  done
)
install_filter "$name" "containers don't reach the cloud's metadata" docker.service
[ "$CHECK" = yes ] || echo "metadata guarded"
