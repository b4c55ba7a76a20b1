# True afterwards: there is no container CONTAINER.
# shellcheck shell=bash
: "${CONTAINER:?}"

podman rm --force "$CONTAINER" >/dev/null 2>&1 || true
if podman container exists "$CONTAINER"; then
  fail "Podman can't remove the container $CONTAINER" "see: podman rm --force $CONTAINER"
fi
echo "removed container $CONTAINER"
