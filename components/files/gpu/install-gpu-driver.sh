# True afterwards: nvidia-smi shows GPU_COUNT GPUs with driver LEAST_DRIVER or newer, kept initialised. A suitable
# driver stays; otherwise Ubuntu's signed driver is installed for the running kernel. If MAY_REPLACE is no, an older
# driver that works is left to the machine's owner.
# shellcheck shell=bash
: "${GPU_COUNT:?}" "${LEAST_DRIVER:?}" "${MAY_REPLACE:?}" "${SYSFS:=/sys}"

# Number of NVIDIA's PCI devices (0x10de) whose class begins with this prefix.
pci_devices() {
  local device count=0
  for device in "$SYSFS"/bus/pci/devices/*; do
    [ "$(cat "$device/vendor" 2>/dev/null)" = 0x10de ] || continue
    case $(cat "$device/class") in "$1"*) count=$((count + 1)) ;; esac
  done
  echo "$count"
}
gpu_class=0x03 # display controllers, 3D ones (0x0302) among them
# lspci of an HGX A100: "Bridge [0680]: NVIDIA Corporation GA100 [A100 NVSwitch]". If the host keeps its switches to
# itself and partitions them, a VM sees none and needs no fabric manager. Not tried: which A2 sizes show them.
switch_class=0x0680

# The loaded module may have an older version: after an update, or if a newer branch was just installed.
load_module() {
  local loaded installed error
  loaded=$(cat "$SYSFS/module/nvidia/version" 2>/dev/null) || loaded=""
  installed=$(modinfo -F version nvidia 2>/dev/null) || installed="another"
  if [ -n "$loaded" ] && [ "$loaded" != "$installed" ]; then
    systemctl stop nvidia-persistenced 2>/dev/null || true
    modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia 2>/dev/null ||
      fail "a reboot is needed: driver $loaded is loaded and in use, $installed is installed" "reboot the machine, then run the update again"
  fi
  error=$(modprobe -a nvidia nvidia_uvm 2>&1) ||
    fail "NVIDIA's module can't be loaded into kernel $(uname -r): $(tail -n 1 <<<"$error")" "see: journalctl -k; Secure Boot takes signed modules only, and a reboot takes the GPUs from another driver"
}

if driver_is_enough; then
  echo "driver $(driver_version) is there"
else
  older=$(driver_version) || older=""
  [ -z "$older" ] || [ "$MAY_REPLACE" = yes ] ||
    fail "driver $older is too old: vLLM's image needs $LEAST_DRIVER or newer" "install a newer one, then run the update again"
  found=$(pci_devices "$gpu_class")
  [ "$found" -gt 0 ] ||
    fail "no NVIDIA GPU on this machine's PCI bus" "take a machine with GPUs, or set accelerator to none"
  [ "$found" -ge "$GPU_COUNT" ] ||
    fail "this machine has $found NVIDIA GPUs, $GPU_COUNT are needed (gpuCount)" "take a larger machine, or set gpuCount"
  refresh_packages
  modules=("$(module_package "$(uname -r)")")
  installable_with_driver "${modules[@]}" || fail_as_not_offered "${modules[0]}"
  # With this package a kernel update includes its module. It may need the newest kernel, which then runs from the next
  # boot on.
  updates=$(module_package "$(kernel_flavour)")
  if installable_with_driver "${modules[@]}" "$updates"; then modules+=("$updates"); fi
  echo "installing ${modules[*]}"
  install_with_driver "${modules[@]}" ||
    fail "could not install ${modules[*]}" "look at apt's lines above, then run the update again"
  load_module
  driver_is_enough ||
    fail "the driver is installed, but does not work: $(nvidia-smi 2>&1 | grep . | sed -n 1p)" "see: journalctl -k; then reboot the machine and run the update again"
  echo "driver $(driver_version) installed"
fi

count=$(nvidia-smi -L | grep -c '^GPU ') || true
[ "$count" -ge "$GPU_COUNT" ] ||
  fail "the driver shows $count GPUs, $GPU_COUNT are needed (gpuCount)" "see: journalctl -k; replace the machine, or set gpuCount"

if [ "$(pci_devices "$switch_class")" -gt 0 ] && ! systemctl is-active --quiet nvidia-fabricmanager; then
  version=$(driver_version)
  command -v nv-fabricmanager >/dev/null || apt_get install "nvidia-fabricmanager-${version%%.*}" || true
  systemctl enable --quiet --now nvidia-fabricmanager ||
    fail "the GPUs are joined by NVSwitches, and their fabric manager does not run" "install nvidia-fabricmanager of exactly the driver's version $version, then run the update again"
fi

# Persistence: without it the driver unloads from idle GPUs and takes seconds to return. Ubuntu's nvidia-persistenced
# starts with --no-persistence-mode. The unit runs before Docker, so that a container finds its GPUs after a boot.
if nvidia-smi --query-gpu=persistence_mode --format=csv,noheader | grep -v '^Enabled' >/dev/null; then
  if [ -d /run/systemd/system ]; then
    cat >/etc/systemd/system/elastic-vllm-gpu.service <<UNIT
[Unit]
Description=elastic-vllm: GPUs stay initialised
After=nvidia-persistenced.service
Before=docker.service podman-restart.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStartPre=-$(command -v modprobe) -a nvidia nvidia_uvm
ExecStart=$(command -v nvidia-smi) -pm 1

[Install]
WantedBy=multi-user.target
UNIT
    # Reload only here, before containers have GPUs: a reload can remove them (NVIDIA/nvidia-container-toolkit#48).
    systemctl daemon-reload
    systemctl enable --quiet elastic-vllm-gpu.service
    systemctl restart elastic-vllm-gpu.service ||
      fail "persistence mode can't be set" "see: journalctl -u elastic-vllm-gpu"
  else
    nvidia-smi -pm 1 >/dev/null || fail "persistence mode can't be set" "see: nvidia-smi -pm 1"
  fi
  echo "persistence mode set"
fi
