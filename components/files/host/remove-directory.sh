# True afterwards: DIRECTORY is gone, and its parent as well where nothing else was in it.
# shellcheck shell=bash
: "${DIRECTORY:?}"

rm -rf -- "$DIRECTORY"
rmdir --ignore-fail-on-non-empty -- "$(dirname "$DIRECTORY")" 2>/dev/null || true
echo "removed $DIRECTORY"
