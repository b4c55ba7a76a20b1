# True afterwards: the disk DEVICE is mounted at DIRECTORY, now and after each boot. Formatted only if it is empty.
# shellcheck shell=bash
: "${DEVICE:?}" "${DIRECTORY:?}"

for _ in $(seq 60); do
  [ -e "$DEVICE" ] && break
  sleep 1
done
[ -e "$DEVICE" ] || fail "the disk for weights is not there ($DEVICE)" "look at the VM's disks in Google Cloud's console"
disk=$(readlink -f -- "$DEVICE")

type=$(blkid -p -o value -s TYPE -- "$disk") || true
if [ -z "$type" ]; then
  # No file system that is known, so it may still hold something: partitions, or a file system that is not.
  if [ -n "$(wipefs --noheadings -- "$disk")" ] || ! cmp -s -n 1048576 -- "$disk" /dev/zero; then
    fail "the disk for weights is not empty and has no file system that is known ($disk)" "attach an empty disk, or one that this program made (weightsDisk)"
  fi
  echo "formatting $disk"
  mkfs.ext4 -q -m 0 -L weights "$disk"
  type=ext4
fi
[ "$type" = ext4 ] || fail "the disk for weights has a $type file system" "use an empty disk, or one with ext4 (weightsDisk)"

mounted=$(findmnt -n -o SOURCE --mountpoint "$DIRECTORY") || true
if [ -n "$mounted" ] && [ "$mounted" != "$disk" ]; then
  fail "$DIRECTORY is taken by $mounted (weightsDirectory)" "set another weightsDirectory"
fi
mkdir -p -- "$DIRECTORY"
uuid=$(blkid -p -o value -s UUID -- "$disk")
if [ -d /run/systemd/system ]; then
  unit=$(systemd-escape --path --suffix=mount "$DIRECTORY")
  install_unit "$unit" <<UNIT
[Unit]
Description=elastic-vllm: the disk for weights
Before=docker.service

[Mount]
What=/dev/disk/by-uuid/$uuid
Where=$DIRECTORY
Type=ext4

[Install]
WantedBy=multi-user.target
UNIT
  systemctl start "$unit"
elif [ -z "$mounted" ]; then
  mount -t ext4 "UUID=$uuid" "$DIRECTORY"
fi
# The disk may have grown since; there is nothing to do if not.
output=$(resize2fs "$disk" 2>&1) || fail "the file system on $disk could not grow: $(tail -n 1 <<<"$output")" "see: journalctl -k"
echo "weights disk $uuid mounted at $DIRECTORY: $(df --output=avail -B 1G -- "$DIRECTORY" | tail -n 1 | tr -d ' ') GiB free"
