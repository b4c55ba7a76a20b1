# True afterwards: of configure-downloads.sh nothing remains.
# shellcheck shell=bash
: "${DOWNLOADS:?}"

rm -rf -- "$DOWNLOADS"
rmdir --ignore-fail-on-non-empty -- "$(dirname "$DOWNLOADS")" 2>/dev/null || true
echo "way out removed"
