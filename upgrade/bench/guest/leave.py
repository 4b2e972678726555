# SPDX-License-Identifier: MIT
"""The baselines' way out of the old kernel: ``python3 -m upgrade.bench.guest.leave MODE COUNT MIB RELEASE``.

``images`` dumps every container to the root disk with the criu command and enters the new kernel with kexec;
``kexec`` and ``reboot`` stop the containers first; ``floor`` has none.
"""

import os
import shutil
import sys
from pathlib import Path

from upgrade import linux
from upgrade.bench.guest import pending, tree
from upgrade.bench.guest.ballast import WORK
from upgrade.bench.guest.marks import Marks
from upgrade.bench.guest.pending import Pending
from upgrade.clock import Clock
from upgrade.host import Host
from upgrade.kexec import cmdline, initrd, load
from upgrade.process import run

IMAGES = WORK / "images"
DUMP_SECONDS = 1800.0
PID_DISTANCE = 100


def main(mode: str, count: int, mib: int, release: str) -> None:
    """Leave this kernel."""
    clock, marks = Clock(), Marks()
    state = Pending(count, mib)
    if mode != "reboot":
        load_kernel(release)
    os.sync()
    if mode == "images":
        state.stamps["begin"] = clock.tsc()
        dump(count)
        state.stamps["dumped"] = clock.tsc()
        state.bytes_copied = sum(file.stat().st_size for file in IMAGES.glob("*/pages-*.img"))
    elif mode in ("kexec", "reboot"):
        state.stamps["begin"] = clock.tsc()
        tree.stop()
        state.stamps["stopped"] = clock.tsc()
    place = {"images": pending.PLACES["images"], "floor": pending.DONE}.get(mode, pending.PLACES["cold"])
    state.save(place)
    os.sync()
    if mode == "reboot":
        marks.write("jump", clock.tsc())
        run(["systemctl", "reboot"])
    else:
        # A file cannot hold this stamp: writing it safely would take longer than what it measures.
        marks.write("jump", clock.tsc())
        linux.reboot_kexec()


def load_kernel(release: str) -> None:
    """Load the kernel, with the segment that keeps the containers' PIDs free and marks the first userspace."""
    host = Host()
    running = host.command_line()
    highest = max(tree.pids(), default=0)
    extra = initrd.segment(
        highest + PID_DISTANCE,
        int(host.read("/proc/sys/kernel/pid_max")),
        cmdline.old_rdinit(running),
    )
    archive = initrd.append(Path(f"/boot/initrd.img-{release}").read_bytes(), extra)
    line = f"{cmdline.base(running)} rdinit={cmdline.RDINIT}"
    load.load(Path(f"/boot/vmlinuz-{release}"), archive, line)


def dump(count: int) -> None:
    """Dump every container, one after the other, as a script would do it. Connections are dropped."""
    shutil.rmtree(IMAGES, ignore_errors=True)
    for number in range(count):
        directory = IMAGES / str(number)
        directory.mkdir(parents=True)
        # The root of the tree: the one whose parent is not in the cgroup. A ballast is a single process.
        pid = (tree.cgroup(number) / "cgroup.procs").read_text().split()[0]
        command = [
            "criu",
            "dump",
            "--tree",
            pid,
            "--images-dir",
            str(directory),
            "--log-file",
            "dump.log",
            "-v1",
        ]
        run([*command, "--tcp-close", "--ext-unix-sk", "--manage-cgroups"], timeout=DUMP_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
