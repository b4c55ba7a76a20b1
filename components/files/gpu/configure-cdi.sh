# True afterwards: Podman knows the GPUs of the current driver by name (CDI, /etc/cdi), and again after each boot.
# shellcheck shell=bash

output=$(nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml 2>&1) ||
  fail "the GPUs can't be described to Podman: $(tail -n 1 <<<"$output")" "nvidia-smi must work on the server"
if [ -d /run/systemd/system ]; then
  install_unit elastic-vllm-cdi.service <<UNIT
[Unit]
Description=elastic-vllm: the GPUs for Podman, as the driver of this boot has them
After=elastic-vllm-gpu.service nvidia-persistenced.service
Before=podman-restart.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$(command -v nvidia-ctk) cdi generate --output=/etc/cdi/nvidia.yaml

[Install]
WantedBy=multi-user.target
UNIT
fi
echo "GPUs described in /etc/cdi/nvidia.yaml"
