# The script that follows on standard input runs as root. In front of every script of a user who is not root.
# shellcheck shell=bash
: "${LOGIN:?}"

refused="user $LOGIN has no root rights (sshUser)"
command -v sudo >/dev/null ||
  fail "$refused: there is no sudo on this server" "use root, or install sudo (doas is not used)"
# sudo reads standard input ahead where it logs it, so it never gets the script before it is known that it does not.
denied=$(sudo -n bash -c '[ "$(id -u)" = 0 ] || { echo "sudo makes it user $(id -un)"; exit 1; }' 2>&1 </dev/null) ||
  fail "$refused: ${denied%%$'\n'*}" "use root, or give the user sudo for all commands, without password (NOPASSWD: ALL) and terminal (!requiretty)"
rules=$(sudo -n -l 2>&1 </dev/null) ||
  fail "sudo does not say whether it logs what user $LOGIN's commands read (sshUser): ${rules##*$'\n'}" "add to sudoers: Defaults:$LOGIN listpw=any"
if grep -qE '(^|[ ,:])(log_input|log_stdin|LOG_INPUT)' <<<"$rules"; then
  fail "sudo logs what user $LOGIN's commands read (log_input), so keys would be in its log (sshUser)" "use root, or add to sudoers: Defaults:$LOGIN !log_input, !log_stdin"
fi
exec sudo -n bash -s -- "$@"
