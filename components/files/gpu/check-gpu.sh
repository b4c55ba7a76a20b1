# True afterwards: the GPUs are healthy, as far as the driver and the kernel's log show. This script only reads.
# shellcheck shell=bash
: "${GPU_COUNT:?}"

replace="replace the machine (a VM: pulumi up --replace URN, with its URN from pulumi stack --show-urns); on your own server reboot, and replace the GPU if it comes back"
warnings=()

# Columns of nvidia-smi, one line per GPU; it fails if nvidia-smi does.
query() { nvidia-smi "$1" --format=csv,noheader,nounits 2>/dev/null | sed 's/ *, */,/g'; }

gpus=$(query --query-gpu=index,name,memory.total,driver_version,ecc.errors.uncorrected.volatile.total) ||
  fail "nvidia-smi can't read the GPUs: $(nvidia-smi 2>&1 | grep . | sed -n 1p)" "see: journalctl -k; $replace"
count=$(grep -c . <<<"$gpus") || true
[ "$count" -ge "$GPU_COUNT" ] || fail "nvidia-smi reads $count GPUs, $GPU_COUNT are needed (gpuCount)" "$replace"
while IFS=, read -r index name memory driver errors; do
  case $errors in
  0 | '[N/A]' | N/A) ;;
  *) fail "GPU $index ($name) has uncorrected memory errors since the driver was loaded: $errors" "$replace" ;;
  esac
done <<<"$gpus"

# The driver's own verdict: None, or the recovery that is needed (Reset, Reboot, Drain...). It exists since driver 570,
# and a query with an unknown field fails as a whole, so this is a separate one.
if actions=$(query --query-gpu=index,gpu_recovery_action); then
  while IFS=, read -r index action; do
    case $action in
    None | '[N/A]' | N/A) ;;
    *) fail "GPU $index asks for recovery: $action" "$replace" ;;
    esac
  done <<<"$actions"
fi

# Pending: "unaffected applications can continue running without affecting accuracy and performance"; failure: the
# memory can't be repaired (docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt). Values are Yes and No, or 1 and 0.
if rows=$(query --query-remapped-rows=gpu_bus_id,remapped_rows.pending,remapped_rows.failure); then
  while IFS=, read -r bus pending failure; do
    case $failure in Yes | 1) fail "the memory of GPU $bus can't be repaired: row remapping failed" "$replace" ;; esac
    case $pending in Yes | 1) warnings+=("GPU $bus repairs its memory at the next reboot") ;; esac
  done <<<"$rows"
fi

# Errors that the driver logged since boot, as: NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, ...
# Fatal errors are 48 (uncorrectable memory error), 64 (a row could not be remapped), 74 (NVLink), 79 (fallen off the bus),
# 94 and 95 (contained and uncontained memory error): docs.nvidia.com/deploy/xid-errors. Others are mostly errors of programs
# (13, 31, 43, 45, 68, 109 by NVIDIA's own k8s-device-plugin, internal/rm/health.go) or come with a recovery action.
log=$(journalctl --dmesg --boot --quiet --no-pager --output cat 2>/dev/null || dmesg 2>/dev/null) ||
  warnings+=("the kernel's log can't be read")
while read -r xid; do
  [ -n "$xid" ] || continue
  line=$(grep -o "NVRM: Xid ([^)]*): $xid,.*" <<<"$log" | tail -n 1 | cut -c 1-160) || line="Xid $xid"
  case $xid in
  48 | 64 | 74 | 79 | 94 | 95) fail "a GPU failed since the machine started: $line" "$replace" ;;
  *) warnings+=("$line") ;;
  esac
done < <(sed -n 's/.*NVRM: Xid ([^)]*): \([0-9]*\),.*/\1/p' <<<"$log" | sort -nu)

# Several A100 in SXM form always reach each other over NVLink; without it tensor parallelism is slow over PCIe.
# PCIe cards, such as L4, may have no links, or links that nothing is plugged into.
links=""
if [ "$GPU_COUNT" -gt 1 ] && grep -q 'A100-SXM' <<<"$gpus"; then
  status=$(nvidia-smi nvlink --status 2>&1) || true
  down=$(grep -ciE 'inactive' <<<"$status") || true
  up=$(grep -cE 'Link [0-9]+: [0-9.]+ GB/s' <<<"$status") || true
  [ "$down" = 0 ] && [ "$up" -gt 0 ] ||
    fail "NVLink between the GPUs is not up: $up links active, $down inactive" "see: nvidia-smi nvlink --status; $replace"
  links=", $up NVLinks up"
fi

IFS=, read -r _ name memory driver _ <<<"$gpus"
for warning in "${warnings[@]}"; do echo "warning: $warning"; done
echo "healthy: $count x $name, $memory MiB, driver $driver$links"
