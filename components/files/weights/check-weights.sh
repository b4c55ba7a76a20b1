# Defines check_weights DIRECTORY: fails unless a model's weights are there, complete and readable by the server.
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

check_weights() {
  local directory=$1 file index missing="" unreadable
  local fetch="copy the model's directory again, or set modelSource to hub"
  [ -d "$directory" ] || fail "no weights in $directory (model, weightsDirectory)" "$fetch"
  [ -e "$directory/config.json" ] || [ -e "$directory/params.json" ] ||
    fail "weights in $directory are incomplete: neither config.json nor params.json" "$fetch"
  [ -e "$directory/tokenizer.json" ] || [ -e "$directory/tokenizer.model" ] || [ -e "$directory/tekken.json" ] ||
    fail "weights in $directory are incomplete: no tokenizer.json, tokenizer.model or tekken.json" "$fetch"
  for index in "$directory"/*.safetensors.index.json; do
    [ -e "$index" ] || continue
    while read -r file; do
      [ -e "$directory/$file" ] || missing="$missing $file"
    done < <(grep -o '"[^"]*\.safetensors"' "$index" | tr -d '"' | sort -u)
  done
  [ -z "$missing" ] || fail "weights in $directory are incomplete, missing:$missing" "$fetch"
  for file in "$directory"/*.safetensors; do
    [ -e "$file" ] || fail "weights in $directory are incomplete: no .safetensors file" "$fetch"
    [ "$(safetensors_size "$file")" = "$(stat -L -c %s -- "$file")" ] ||
      fail "weights in $directory are incomplete: $(basename "$file") is cut short or damaged" "$fetch"
  done
  # The server's own user reads them; nothing else grants it that.
  unreadable=$(find -L "$directory" \( \( -type f ! -perm -o=r \) -o \( -type d ! -perm -o=rx \) \) -print -quit)
  [ -z "$unreadable" ] ||
    fail "the server's user may not read $unreadable" "run: chmod -R o+rX $directory"
  echo "weights complete: $(du -sLh -- "$directory" | cut -f 1) in $directory"
}
