# True afterwards: the engine has IMAGE, out of the files in DIRECTORY (scripts/cli/bundle/images.py). Files of the same
# role's earlier images go: what they shared with this one is here too.
# shellcheck shell=bash
: "${ENGINE:?}" "${IMAGE:?}" "${DIRECTORY:?}" "${EARLIER:?}"

if "$ENGINE" image inspect "$IMAGE" >/dev/null 2>&1; then
  echo "$IMAGE is loaded"
else
  [ -e "$DIRECTORY/manifest.json" ] || fail "the files of $IMAGE are not in $DIRECTORY" "run the update again"
  tar -C "$DIRECTORY" -c manifest.json blobs | "$ENGINE" load >/dev/null ||
    fail "$IMAGE can't be loaded" "see the line above: is there room for it, unpacked, where the engine keeps images?"
  "$ENGINE" image inspect "$IMAGE" >/dev/null || fail "$IMAGE was loaded, but has another name" "build the bundle again"
  echo "$IMAGE loaded"
fi
for other in "$EARLIER"-*; do
  [ "$other" = "$DIRECTORY" ] || [ ! -d "$other" ] || [ ! -e "$DIRECTORY/manifest.json" ] || rm -rf -- "$other"
done
