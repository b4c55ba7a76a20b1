# True afterwards: of install-acme-certificate.sh only the client remains, which other stacks may use.
# shellcheck shell=bash
: "${PREFIX:?}" "${DIRECTORY:?}"

for unit in "$PREFIX-acme.timer" "$PREFIX-acme.service"; do
  if [ -e "/etc/systemd/system/$unit" ]; then
    systemctl disable --quiet --now "$unit"
    rm "/etc/systemd/system/$unit"
  fi
done
rm -rf -- "${DIRECTORY:?}/acme" "$DIRECTORY/nginx/acme"
rmdir --ignore-fail-on-non-empty -- "$DIRECTORY/nginx" "$DIRECTORY" 2>/dev/null || true
echo "certificate and its renewal removed"
