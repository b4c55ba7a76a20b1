# True afterwards: Nginx uses the files given on standard input (a line each: NAME BASE64). Where it runs already,
# the files are tested by it first, taken by a reload, and the old ones stay if anything is wrong. Directory `acme` is not
# of these: renew-certificate.sh keeps it.
# shellcheck shell=bash
: "${ENGINE:?}" "${DIRECTORY:?}" "${MOUNTED_AT:?}" "${CONTAINER:?}" "${OWNER:?}" "${GID:?}"

umask 077
install -d -m 0700 -o "$OWNER" -g "$GID" -- "$DIRECTORY"
rm -rf -- "$DIRECTORY"/new-*
new=$(mktemp -d -- "$DIRECTORY/new-XXXXXX")
trap 'rm -rf -- "$new"' EXIT
while read -r name data; do
  printf '%s' "$data" | base64 -d >"$new/$name"
done
[ -s "$new/nginx.conf" ] || fail "no configuration arrived" "run the update again"
chown -R "$OWNER:$GID" -- "$new"
version=v-$(cd "$new" && sha256sum -- * | sha256sum | cut -c 1-16)
if [ -e "$DIRECTORY/$version" ]; then rm -rf -- "$new"; else mv -T -- "$new" "$DIRECTORY/$version"; fi

workers() {
  pgrep --parent "$("$ENGINE" inspect --format '{{.State.Pid}}' "$CONTAINER")" --full 'nginx: worker process$' | sort || true
}

running=no
if command -v "$ENGINE" >/dev/null &&
  [ "$("$ENGINE" inspect --format '{{.State.Running}}' "$CONTAINER" 2>/dev/null)" = true ]; then running=yes; fi
if [ "$running" = yes ]; then
  if ! "$ENGINE" exec "$CONTAINER" nginx -t -q -e stderr -c "$MOUNTED_AT/$version/nginx.conf" >&2; then
    rm -rf -- "${DIRECTORY:?}/$version"
    fail "Nginx refuses the new configuration, the old one stays in use" "see Nginx's line above"
  fi
fi
ln -sfn -- "$version" "$DIRECTORY/current.new"
mv -T -- "$DIRECTORY/current.new" "$DIRECTORY/current"
if [ "$running" = yes ]; then
  before=$(workers)
  "$ENGINE" kill --signal HUP "$CONTAINER" >/dev/null
  for _ in $(seq 100); do
    now=$(workers)
    if [ -n "$now" ] && [ -z "$(comm -12 <(echo "$before") <(echo "$now"))" ]; then break; fi
    sleep 0.1
  done
  [ -z "$(comm -12 <(echo "$before") <(echo "$now"))" ] ||
    fail "Nginx did not take the new configuration within 10 s" "see: $ENGINE logs $CONTAINER"
fi
find "$DIRECTORY" -mindepth 1 -maxdepth 1 -type d ! -name "$version" ! -name acme -exec rm -rf -- {} +
if [ "$running" = yes ]; then echo "configuration $version taken by reload"; else echo "configuration $version installed"; fi
