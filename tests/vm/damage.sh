#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs in the guest's new kernel before the restore: change one byte of the file that /etc/damage names.
set -eu
modprobe --all nd_e820 nd_pmem
until [ -b /dev/pmem0 ]; do sleep 0.05; done
mkdir -p /run/damage
mount -t ext4 -o dax=always /dev/pmem0 /run/damage
file=/run/damage/$(cat /etc/damage)
middle=$(($(stat -c %s "$file") / 2))
byte=$(od -An -tu1 -j "$middle" -N 1 "$file")
# shellcheck disable=SC2059
printf "\\$(printf %o $((byte ^ 1)))" | dd of="$file" bs=1 seek="$middle" conv=notrunc status=none
umount /run/damage
