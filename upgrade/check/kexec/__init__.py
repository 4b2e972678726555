# SPDX-License-Identifier: MIT
"""Does this kernel enter another one at all?"""

from upgrade.check.kexec import allowed, firmware, hibernation, hypervisor, signature, trial
from upgrade.check.model import Check

CHECKS = (
    Check("kexec.architecture", "upgrades know the processor's architecture", allowed.architecture),
    Check("kexec.compiled", "this kernel can load another one", allowed.compiled),
    Check("kexec.allowed", "loading a kernel is not switched off", allowed.allowed),
    Check("kexec.hypervisor", "nothing below this kernel stands in the way", hypervisor.hypervisor),
    Check("kexec.signature", "the kernel to enter is signed, if that is wanted", signature.signature),
    Check("kexec.ima", "no policy of IMA refuses image or initrd", signature.ima),
    Check("kexec.command-line", "the new command line is not too long", trial.command_line),
    Check("kexec.memory-map", "the new kernel is told of all memory", firmware.memory_map),
    Check("kexec.efi", "EFI's services are handed over", firmware.efi),
    Check("kexec.crash-kernel", "the crash kernel's memory is as wished", firmware.crash_kernel),
    Check("kexec.hibernation", "no hibernated system would be resumed", hibernation.hibernation),
    Check("kexec.loaded", "no other kernel is loaded", allowed.loaded),
    Check(
        "kexec.file-load",
        "image and initrd are accepted (a real load and unload)",
        trial.file_load,
        in_run=False,
    ),
)
