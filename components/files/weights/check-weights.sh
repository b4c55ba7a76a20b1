# Defines check_weights DIRECTORY: fails unless a model's weights are there, complete and readable by the server.
# LOAD_FORMAT, CONFIG_FORMAT and TOKENIZER_MODE are vLLM's arguments of that name, where they are given. PLACE_SETTINGS
# are the settings that say where the weights are, FETCH is what to do where some are missing, and AS_SERVER is set where
# the server's own user runs this.
# shellcheck shell=bash

# The size that a safetensors file must have: 8 bytes, then a JSON header of that length, then the tensors.
# https://github.com/huggingface/safetensors#format
safetensors_size() {
  local header_length end
  header_length=$(od -An -t u8 -N 8 -- "$1" | tr -d ' ')
  [ -n "$header_length" ] && [ "$header_length" -lt 100000000 ] || return 1
  end=$(head -c "$((8 + header_length))" -- "$1" | tail -c +9 | grep -ao '"data_offsets": *\[[0-9]*, *[0-9]*\]' |
    grep -o '[0-9]*\]' | tr -d ']' | sort -n | tail -n 1) || return 1
  echo "$((8 + header_length + end))"
}

# True if one of the files is there and not empty: any_of DIRECTORY NAME...
any_of() {
  local directory=$1 name
  for name in "${@:2}"; do
    if [ -s "$directory/$name" ]; then return 0; fi
  done
  return 1
}

# True if a symbolic link leads from its place to one in the same directory, wherever that is mounted.
stays_inside() {
  local directory=$1 link=$2 target depth part
  target=$(readlink -- "$link")
  case $target in /*) return 1 ;; esac
  depth=$(tr -cd / <<<"${link#"$directory"/}" | wc -c)
  while read -r part; do
    case $part in
    ..) depth=$((depth - 1)) ;;
    . | "") ;;
    *) depth=$((depth + 1)) ;;
    esac
    [ "$depth" -ge 0 ] || return 1
  done < <(tr / '\n' <<<"$target")
}

check_weights() {
  local directory=$1 file link unreadable pointer missing="" incomplete="weights in $1 are incomplete"
  local loaded="*.safetensors" index=model.safetensors.index.json config=config.json
  local fetch=${FETCH:-"copy the model's directory again, or set modelSource to hub"}
  [ -d "$directory" ] || fail "no weights in $directory (${PLACE_SETTINGS:-model, weightsDirectory})" "$fetch"

  # The server's own user reads them. On a host only the bits for others let it; in a pod its group may as well.
  if [ -n "${AS_SERVER:-}" ]; then
    unreadable=$(find -L "$directory" ! -type l \( ! -readable -o \( -type d ! -executable \) \) -print -quit 2>/dev/null)
  else
    unreadable=$(find -L "$directory" \( \( -type f ! -perm -o=r \) -o \( -type d ! -perm -o=rx \) \) -print -quit)
  fi
  [ -z "$unreadable" ] ||
    fail "the server's user may not read $unreadable" "run: chmod -R o+rX $directory"
  # vLLM sees this directory alone: a hub's cache links to files beside it.
  while IFS= read -r -d '' link; do
    [ -e "$link" ] || fail "$incomplete: $link leads nowhere" "$fetch"
    stays_inside "$directory" "$link" ||
      fail "$link leads out of $directory, which is all that vLLM can see" \
        "copy the files instead of the links: cp -rL -- $directory/. ANOTHER_DIRECTORY, then rename it to $directory"
  done < <(find "$directory/" -type l -print0)
  pointer=$(find "$directory/" -maxdepth 1 -type f -size -2 \
    -regex '.*\.\(safetensors\|json\|model\|jinja\|txt\|py\|tiktoken\)' \
    -exec grep -q '^version https://git-lfs.github.com/spec/' -- {} \; -print -quit)
  [ -z "$pointer" ] || fail "$pointer is a pointer of Git LFS, not the file" "run there: git lfs pull; or $fetch"

  # The files that vLLM 0.32 loads (model_loader/default_loader.py).
  if [ "${LOAD_FORMAT:-auto}" = mistral ] || { [ "${LOAD_FORMAT:-auto}" = auto ] && compgen -G "$directory/consolidated*.safetensors" >/dev/null; }; then
    loaded="consolidated*.safetensors" index=consolidated.safetensors.index.json
  fi
  if [ "${CONFIG_FORMAT:-auto}" = mistral ] || { [ "${CONFIG_FORMAT:-auto}" = auto ] && [ "$loaded" != "*.safetensors" ] && [ -e "$directory/params.json" ]; }; then
    config=params.json
  fi
  any_of "$directory" "$config" || fail "$incomplete: no $config" "$fetch"
  if [ "${TOKENIZER_MODE:-auto}" = mistral ]; then
    any_of "$directory" tekken.json tokenizer.model{,.v1,.v2,.v3,.v7} ||
      fail "$incomplete: no tekken.json or tokenizer.model, which Mistral's format needs" "$fetch"
  else
    any_of "$directory" tokenizer.json tokenizer.model tekken.json tiktoken.model vocab.json ||
      compgen -G "$directory/*.tiktoken" >/dev/null ||
      fail "$incomplete: no tokenizer.json, tokenizer.model or tekken.json" "$fetch"
  fi
  local files=()
  if [ -e "$directory/$index" ]; then
    while read -r file; do
      if [ -e "$directory/$file" ]; then files+=("$directory/$file"); else missing="$missing $file"; fi
    done < <(grep -o '"[^"]*\.safetensors"' "$directory/$index" | tr -d '"' | sort -u)
    [ -z "$missing" ] || fail "$incomplete: $index names files that are missing:$missing" \
      "$fetch; if the other files are the whole model, remove $directory/$index"
  else
    while read -r file; do files+=("$file"); done < <(compgen -G "$directory/$loaded")
  fi
  [ "${#files[@]}" -gt 0 ] || fail "$incomplete: no file $loaded, which vLLM loads for this model" "$fetch"
  for file in "${files[@]}"; do
    [ "$(safetensors_size "$file")" = "$(stat -L -c %s -- "$file")" ] ||
      fail "$incomplete: $(basename "$file") is cut short or damaged" "$fetch"
  done
  echo "weights complete: $(du -sLh -- "$directory" | cut -f 1) in $directory"
}
