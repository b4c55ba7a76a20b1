# What follows on standard input is run by root. In front of every script of a user who is not root.
# shellcheck shell=bash
: "${LOGIN:?}"

sudo -n true 2>/dev/null ||
  fail "user $LOGIN has no root rights (sshUser)" "use root, or a user with passwordless sudo"
exec sudo -n bash -s
