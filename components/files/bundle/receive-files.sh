# True afterwards: DESTINATION has the files that standard input lists (a line each: SHA256 BYTES CARRIED PATH, then an
# empty line), each checked. They come from SOURCE, a directory here, or follow the list. Files that are here already,
# under any name, are not sent again, and interrupted ones resume. If the engine has IMAGE, there is nothing to do.
# Lines that begin with @ are for the sender.
# shellcheck shell=bash
: "${ENGINE:?}" "${DESTINATION:?}" "${ALIKE:?}" "${SOURCE?}" "${PART?}" "${IMAGE?}"

umask 022
marker=.elastic-vllm-files # the files that are in place and checked, as lines of sha256sum
parts=$DESTINATION/.elastic-vllm-parts
again="run the update again: it resumes"

# openssl is faster, with the processor's own instructions, but not installed everywhere.
checksum() {
  if command -v openssl >/dev/null; then openssl dgst -sha256 -r; else sha256sum; fi | cut -d ' ' -f 1
}

size_of() { stat -c %s -- "$1" 2>/dev/null || echo 0; }

sums=() sizes=() carried=() names=()
while read -r sum size here name && [ -n "$sum" ]; do
  sums+=("$sum") sizes+=("$size") carried+=("$here") names+=("$name")
done

if [ -n "$IMAGE" ] && command -v "$ENGINE" >/dev/null && "$ENGINE" image inspect "$IMAGE" >/dev/null 2>&1; then
  echo "$IMAGE is there"
  exit 0
fi

mkdir -p -- "$parts"
read -r _ _ _ _ group _ </proc/self/stat # process group of everything that one connection has started here
exec 9>"$DESTINATION/.elastic-vllm-lock"
if ! flock --nonblock 9; then
  # A process left over from a broken connection would write to the same files.
  other=$(cat "$parts/group" 2>/dev/null) || other=""
  [ -z "$other" ] || [ "$other" = "$group" ] || kill -KILL -- "-$other" 2>/dev/null || true
  flock --timeout 30 9 || fail "another update is bringing files to $DESTINATION" "wait for its end"
fi
echo "$group" >"$parts/group"
if [ -n "$SOURCE" ]; then
  while sleep 5; do echo "$(du -sm -- "$DESTINATION" | cut -f 1) MB in $DESTINATION"; done &
  # shellcheck disable=SC2064 # expanded now: this process
  trap "kill $! 2>/dev/null || true" EXIT
fi

# Return true if the file is in place and known to be good.
place() {
  local index=$1
  mkdir -p -- "$(dirname "$DESTINATION/${names[index]}")"
  chmod 0644 -- "$parts/${sums[index]}"
  mv -T -- "$parts/${sums[index]}" "$DESTINATION/${names[index]}"
  echo "${sums[index]}  ${names[index]}" >>"$DESTINATION/$marker"
}

is_good() { [ -f "$1" ] && [ "$(size_of "$1")" = "$2" ] && [ "$(checksum <"$1")" = "$3" ]; }

# Find the same content beside it, of an earlier model, revision or image. ALIKE is a pattern of directories.
found_alike() {
  local index=$1 other name
  # shellcheck disable=SC2086 # a pattern
  for other in $ALIKE; do
    [ -f "$other/$marker" ] || continue
    while read -r _ name; do
      if is_good "$other/$name" "${sizes[index]}" "${sums[index]}"; then
        ln -f -- "$other/$name" "$parts/${sums[index]}" 2>/dev/null || cp -- "$other/$name" "$parts/${sums[index]}"
        return 0
      fi
    done < <(grep -F -- "${sums[index]}" "$other/$marker")
  done
  return 1
}

needed=()
bytes=0 total=0
for index in "${!names[@]}"; do
  total=$((total + sizes[index]))
  file=$DESTINATION/${names[index]}
  if [ "$(size_of "$file")" = "${sizes[index]}" ] &&
    grep -qsxF -- "${sums[index]}  ${names[index]}" "$DESTINATION/$marker"; then continue; fi
  if is_good "$file" "${sizes[index]}" "${sums[index]}"; then
    echo "${sums[index]}  ${names[index]}" >>"$DESTINATION/$marker"
    continue
  fi
  if found_alike "$index"; then
    place "$index"
    continue
  fi
  [ "${carried[index]}" = yes ] ||
    fail "${names[index]} is not here, and the bundle, a delta since another one, leaves it out" "bring the bundle before it first, or build one without --since"
  part=$parts/${sums[index]}
  if [ "$(size_of "$part")" -gt "${sizes[index]}" ]; then rm -- "$part"; fi
  needed+=("$index")
  bytes=$((bytes + sizes[index] - $(size_of "$part")))
done
free=$(df --output=avail -B 1 -- "$DESTINATION" | tail -n 1)
printf '%s: %d of %d files to bring, %d of %d MB; %d MB free\n' \
  "$DESTINATION" "${#needed[@]}" "${#names[@]}" "$((bytes / 1000000))" "$((total / 1000000))" "$((free / 1000000))"
[ "$bytes" -le "$free" ] ||
  fail "too little disk for $DESTINATION: $((free / 1000000)) MB free, $((bytes / 1000000)) MB needed" "free some, then $again"

for index in "${needed[@]}"; do
  part=$parts/${sums[index]}
  if [ -n "$SOURCE" ]; then
    [ "$(size_of "$SOURCE/$PART/${names[index]}")" = "${sizes[index]}" ] ||
      fail "$SOURCE/$PART/${names[index]} is not what the bundle's manifest says (bundleOnHost)" "plug in the bundle's disk, or carry it over again"
  else
    echo "@send $index $(size_of "$part")"
  fi
done
if [ -z "$SOURCE" ]; then echo "@begin"; fi

# As below, with one process instead of three: twice as fast on a fast disk.
take=$(
  cat <<'PYTHON'
import hashlib, os, sys
path, left = sys.argv[1], int(sys.argv[2])
checksum = hashlib.sha256()
try:
    with open(path, "r+b", buffering=0) as part:
        while block := part.read(1 << 20):
            checksum.update(block)
        while left and (block := os.read(0, min(left, 1 << 20))):
            left -= len(block)
            checksum.update(block)
            while block:
                block = block[part.write(block):]
except OSError as error:
    sys.exit(f"{path}: {error.strerror}")
print(checksum.hexdigest())
PYTHON
)

# Append the rest of a file to the part that is here, and compute its checksum on the way: only the beginning of an
# interrupted file is read twice.
append() {
  local part=$parts/${sums[$1]} left
  left=$((sizes[$1] - $(size_of "$part")))
  if command -v python3 >/dev/null; then
    python3 -I -c "$take" "$part" "$left"
  else
    {
      cat -- "$part"
      dd bs=1M iflag=fullblock,count_bytes "count=$left" status=none | tee -a -- "$part"
    } | checksum
  fi
}

for index in "${needed[@]}"; do
  part=$parts/${sums[index]}
  touch -- "$part"
  arrived=$(if [ -n "$SOURCE" ]; then
    tail -c "+$(($(size_of "$part") + 1))" -- "$SOURCE/$PART/${names[index]}" | append "$index"
  else append "$index"; fi) || {
    [ "$(df --output=avail -B 1 -- "$DESTINATION" | tail -n 1)" -gt 1000000 ] ||
      fail "the disk of $DESTINATION is full" "free some, then $again"
    fail "${names[index]} can't be written to $DESTINATION" "see the line above, then $again"
  }
  [ "$(size_of "$part")" = "${sizes[index]}" ] ||
    fail "the connection was cut while ${names[index]} came" "$again"
  if [ "$arrived" != "${sums[index]}" ]; then
    rm -- "$part"
    fail "${names[index]} arrived damaged and was removed" "check the bundle with scripts/elastic-vllm bundle verify, then run the update again"
  fi
  place "$index"
done
rm -rf -- "$parts"
echo "complete: ${#names[@]} files in $DESTINATION"
