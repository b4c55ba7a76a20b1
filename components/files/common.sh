# In front of every script: strict mode, and how to fail with a cause and a fix.
# shellcheck shell=bash
set -euo pipefail
fail() {
  printf 'elastic-vllm: %s\n  fix: %s\n' "$1" "$2" >&2
  exit 1
}
