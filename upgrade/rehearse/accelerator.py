# SPDX-License-Identifier: MIT
"""KVM where it works, emulation elsewhere.

On some hosts ``/dev/kvm`` opens and the guest then hangs, so only a kernel that really boots is proof. The
proof is a kernel without a root file system: it panics, and with ``panic=-1`` and ``-no-reboot`` QEMU ends.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from upgrade.host import Host
from upgrade.process import environment
from upgrade.rehearse.cache import Cache
from upgrade.rehearse.kernels import Kernel

PROBE_SECONDS = 20.0
EMULATION = "tcg,thread=multi"
QEMU = "qemu-system-x86_64"
LAST_WORDS = b"Unable to mount root fs"

# The tsc clocksource needs invtsc; la57 would move the top of the address space, which nothing here expects.
CPU = "max,la57=off,+invtsc"


def choose(cache: Cache, kernel: Kernel) -> str:
    """Return the value for QEMU's ``-accel``. The proof is done once in each boot of the host."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return EMULATION
    boot = Host().read("/proc/sys/kernel/random/boot_id")
    memory = cache.directory("accelerator") / "kvm.json"
    with cache.lock("accelerator"):
        works = remembered(memory, boot)
        if works is None:
            works = kvm_boots(kernel)
            memory.write_text(json.dumps({"boot_id": boot, "works": works}))
    return "kvm" if works else EMULATION


def remembered(memory: Path, boot: str) -> bool | None:
    """Return what was found out in this boot of the host, if anything was."""
    try:
        noted = json.loads(memory.read_text())
    except (OSError, ValueError):
        return None
    return bool(noted["works"]) if noted.get("boot_id") == boot else None


def kvm_boots(kernel: Kernel) -> bool:
    """Tell whether a kernel gets to its end under KVM within reasonable time."""
    with tempfile.TemporaryDirectory() as directory:
        console = Path(directory, "console")
        command = [QEMU, "-accel", "kvm", "-machine", "q35", "-cpu", CPU, "-smp", "2", "-m", "512"]
        command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{console}"]
        command += ["-kernel", str(kernel.vmlinuz), "-append", "console=ttyS0 panic=-1"]
        try:
            # Not upgrade.process.run(): a time-out is an answer here, not an error.
            subprocess.run(
                command,
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROBE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return False
        return console.exists() and LAST_WORDS in console.read_bytes()
