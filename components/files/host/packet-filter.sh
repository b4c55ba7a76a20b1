#!/bin/bash
# Keeps a packet filter of elastic-vllm in place on this machine:
#   packet-filter.sh missing NAME   prints what is not in place, a line each
#   packet-filter.sh host NAME      puts the host's part in place
#   packet-filter.sh set NAME       puts all of it in place
#   packet-filter.sh watch NAME     does so whenever something takes a part of it away, and never ends
# NAME.nft is a table of the host. NAME.container names an engine and a container, and NAME.inside is a table of that
# container's own network. NAME.rules are routing rules, a line each: FAMILY PRIORITY RULE. Each may be absent.
set -u
name=$2
cd "$(dirname "$0")" || exit 1
[ ! -e "$name.container" ] || read -r engine container <"$name.container"

table_in() { sed -n 's/^table \(inet [^ ]*\) {$/\1/p' "$1"; }

# False where the table of FILE is in place; the words after it enter another network. What nft prints of the file once
# it is loaded is tried in an empty network.
# shellcheck disable=SC2016,SC2046 # the inner shell expands; family and name are two words
lacks_table() {
  local file=$1
  shift
  [ "$("$@" nft -s list table $(table_in "$file") 2>/dev/null)" != \
    "$(unshare --net sh -c 'nft -f "$1" && nft -s list table $2' sh "$file" "$(table_in "$file")")" ]
}

# Runs a command in the container's network, never in the host's.
inside() {
  local pid
  pid=$("$engine" inspect --type container --format '{{.State.Pid}}' "$container" 2>/dev/null)
  [ "${pid:-0}" != 0 ] && [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ] || return 1
  nsenter --target "$pid" --net "$@"
}

families() { if [ -e /proc/net/if_inet6 ]; then echo "-4 -6"; else echo -4; fi; }

# Prints the routing rules that a family has at the priorities of the file.
list_rules() {
  ip "$1" rule list | awk -v family="$1" 'NR == FNR {if ($1 == family) mine[$2 ":"]; next} $1 in mine' "$name.rules" -
}

set_rules() {
  local family priority rule
  while read -r family priority rule; do
    [ "$family" = "$1" ] || continue
    while ip "$family" rule delete priority "$priority" 2>/dev/null; do :; done
    # shellcheck disable=SC2086 # a rule is words
    ip "$family" rule add priority "$priority" $rule
  done <"$name.rules"
}

lacks_rules() { [ "$(list_rules "$1")" != "$(unshare --net /bin/bash "$0" try "$name" "$1")" ]; }

missing() {
  local family
  if [ -e "$name.nft" ] && lacks_table "$name.nft"; then echo "table $(table_in "$name.nft")"; fi
  if [ -e "$name.rules" ]; then
    for family in $(families); do
      if lacks_rules "$family"; then echo "routing rules (ip $family rule)"; fi
    done
  fi
  if [ -e "$name.inside" ] && inside true && lacks_table "$name.inside" inside; then
    echo "table $(table_in "$name.inside") in the network of $container"
  fi
}

host() {
  local family
  if [ -e "$name.nft" ] && lacks_table "$name.nft" && nft -f "$name.nft"; then
    echo "put in place: table $(table_in "$name.nft")"
  fi
  if [ -e "$name.rules" ]; then
    for family in $(families); do
      if lacks_rules "$family" && set_rules "$family"; then echo "put in place: routing rules (ip $family rule)"; fi
    done
  fi
}

all() {
  host
  if [ -e "$name.inside" ] && inside true && lacks_table "$name.inside" inside && inside nft -f - <"$name.inside"; then
    echo "put in place: table $(table_in "$name.inside") in the network of $container"
  fi
}

# Prints a line for whatever may have taken something away; ends when one of its sources does.
changes() {
  nft monitor destroy &
  if [ -e "$name.rules" ]; then ip monitor rule & fi
  if [ -e "$name.inside" ]; then "$engine" events --filter "container=$container" --filter event=start --format start & fi
  wait -n
  # shellcheck disable=SC2046 # one word for each
  kill $(jobs -p) 2>/dev/null
}

case $1 in
missing) missing ;;
host) host ;;
set) all ;;
watch)
  while :; do
    all
    patience=1 # what is taken away before the sources listen is found soon
    while read -r -t "$patience" _ || [ "$?" -gt 128 ]; do
      all
      if [ "$patience" -lt 60 ]; then patience=$((2 * patience)); fi
    done < <(changes 2>/dev/null)
    sleep 1
  done
  ;;
try) set_rules "$3" && list_rules "$3" ;; # in an empty network
esac
