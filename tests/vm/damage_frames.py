# SPDX-License-Identifier: MIT
"""Runs in the guest's new kernel, before the restore: writes into a frame of the first container.

Which one it is says the frame map: behind the root's and the first file's inode come that file's blocks
(memfs/erofs.py).
"""

import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, "/usr/local/lib/seamless-upgrade")
from memfs import namespace, ranges, store

PAGE = 4096
FIRST_INDEX = 2 * PAGE + 64 + 64 + 64  # metadata from block 2: unused, root inode, first inode

command_line = Path("/proc/cmdline").read_text()
store_span, frames_span = ranges.parse_command_line(command_line)[:2]
subprocess.run(["modprobe", "nd_e820"], check=True)
space = namespace.wait(frames_span, 20)
namespace.force_raw(space)
subprocess.run(["modprobe", "nd_pmem"], check=True)
device = namespace.make_block_device(space, raw=True, timeout_s=20)
metadata = namespace.make_block_device(namespace.wait(store_span, 20), raw=False, timeout_s=20)
where = Path("/run/damage")
store.mount(metadata, where, read_only=True)
head = (where / "frames").read_bytes()[: FIRST_INDEX + 8 * 200]
store.unmount(where)
_, _, block = struct.unpack_from("<HHI", head, FIRST_INDEX + 8 * 150)
with device.open("r+b") as f:
    f.seek(block * PAGE + 1000)
    f.write(b"this was never there")
print(f"block {block} of {device} damaged", flush=True)
