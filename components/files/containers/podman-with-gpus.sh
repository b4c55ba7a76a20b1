# Defines podman_with_gpus WORDS: Podman, as it can run a container that has GPUs and a read-only root. With crun before
# 1.26 that root is read-only before NVIDIA's hooks have put the driver's libraries in place (containers/crun#1924), and
# the container does not start; with runc they come first.
# shellcheck shell=bash

podman_with_gpus() {
  if command -v runc >/dev/null; then podman --runtime runc "$@"; else podman "$@"; fi
}
