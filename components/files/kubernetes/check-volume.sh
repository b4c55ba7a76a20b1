# True afterwards: the volume of VOLUME can be written to. SETTING chose it.
# shellcheck shell=bash
: "${VOLUME:?}" "${SETTING:?}"

if ! { mkdir -p "$VOLUME/.check" && rmdir "$VOLUME/.check"; }; then
  fail "the user of the download may not write to the volume ($SETTING)" \
    "use a class whose volumes belong to the pod's group (fsGroup), or that anyone may write to"
fi
echo "the volume can be filled"
