# True afterwards: a container of IMAGE, confined like vLLM's, has seen GPU_COUNT GPUs or more, and can start vLLM.
# shellcheck shell=bash
: "${ENGINE:?}" "${PREFIX:?}" "${IMAGE:?}" "${GPU_COUNT:?}"

# A container left over from a broken connection would have the name.
"$ENGINE" rm --force "$PREFIX-gpu-proof" >/dev/null 2>&1 || true
case $ENGINE in
podman)
  run=podman_with_gpus
  fix="nvidia-smi must work on the server, and Podman find the GPUs in /etc/cdi"
  command -v runc >/dev/null || fix+="; install runc, unless crun is 1.26 or newer"
  # As NVIDIA recommends: SELinux would keep a container from opening the GPUs' devices.
  gpus=(--device nvidia.com/gpu=all --security-opt label=disable)
  # Podman's default limits can exceed the host's.
  gpus+=(--ulimit nofile=4096:4096 --ulimit nproc=4096:4096)
  ;;
*)
  run=docker
  fix="nvidia-smi must work on the server, and Docker must know the GPUs: restart it after NVIDIA's container toolkit was installed"
  gpus=(--gpus all)
  ;;
esac
# nvidia-smi is not in the image: the container toolkit puts it there, along with the driver's libraries.
seen=$("$run" run --rm --name "$PREFIX-gpu-proof" "${gpus[@]}" --network none --user 65534:65534 --read-only \
  --cap-drop ALL --security-opt no-new-privileges --entrypoint nvidia-smi "$IMAGE" -L 2>&1) ||
  fail "a container can't use the GPUs: $(grep . <<<"$seen" | tail -n 1)" "$fix"
count=$(grep -c '^GPU ' <<<"$seen") || true
[ "$count" -ge "$GPU_COUNT" ] ||
  fail "a container sees $count GPUs, $GPU_COUNT are needed (gpuCount)" "compare nvidia-smi -L on the server, and set gpuCount"
# The health check runs in vLLM's container, which must not be replaced by one that cannot start.
"$run" run --rm --name "$PREFIX-gpu-proof" --network none --user 65534:65534 --read-only --cap-drop ALL \
  --security-opt no-new-privileges --entrypoint sh "$IMAGE" -c \
  'command -v python3 && { command -v vllm || python3 -c "import importlib.util as u; u.find_spec(\"vllm\") or exit(1)"; }' >/dev/null ||
  fail "the image $IMAGE has no python3 with vLLM on its PATH (vllmImage)" \
    "take vLLM's own image, or add them to the image's PATH as python3 and vllm"
echo "a container sees $count GPUs"
