# SPDX-License-Identifier: MIT
"""Who may be entered: lockdown, Secure Boot, signatures and IMA.

The conditions are those of ``kimage_validate_signature()`` in ``kernel/kexec_file.c``: a signature that is missing or
unknown is refused if CONFIG_KEXEC_SIG_FORCE is set, and under lockdown unless IMA appraises the image.
"""

import gzip
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from upgrade.check.model import Finding, failed, passed, skipped, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.host import Host
from upgrade.kexec import pe

SECURITY = "/sys/kernel/security"
LOCKDOWN = f"{SECURITY}/lockdown"
IMA_POLICY = f"{SECURITY}/ima/policy"
IMA_FILE = "/etc/ima/ima-policy"
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_RULES = re.compile(r"^appraise .*\bfunc=(KEXEC_(?:KERNEL|INITRAMFS)_CHECK)\b", re.MULTILINE)


def signature(situation: Situation) -> Iterator[Finding]:
    """Ask whether the kernel to enter has to be signed, and whether it is."""
    host, target = situation.host, situation.target
    config, locked = running_config(host), lockdown(host)
    signed = pe.certificate_bytes(target.path) > 0
    secure = {True: "on", False: "off", None: "not known"}[secure_boot(host)]
    state = (
        f"{'signed' if signed else 'not signed'}; lockdown is {locked or 'not known'}, Secure Boot {secure}"
    )
    forced = config.get("CONFIG_KEXEC_SIG_FORCE") == "y"
    # without CONFIG_KEXEC_SIG nobody looks at signatures, not under lockdown either
    wanted = forced or (locked not in (None, "none") and config.get("CONFIG_KEXEC_SIG", "y") == "y")
    remedy = "take the distribution's signed kernel, or sign it with a key of this machine (sbsign, mokutil)"
    if wanted and not signed and not forced and has_ima_signature(target.path):
        yield warned(
            str(target.path),
            f"{state}; it has a signature of IMA",
            source=LOCKDOWN,
            reason="that is enough only if IMA's policy appraises kernels",
            remedy=remedy,
        )
    elif wanted and not signed:
        yield failed(
            str(target.path),
            state,
            source="CONFIG_KEXEC_SIG_FORCE" if forced else LOCKDOWN,
            reason="the running kernel enters only kernels whose signature it knows",
            remedy=remedy,
        )
    elif locked is None and not signed and secure != "off":
        yield skipped(
            str(target.path), state, source=LOCKDOWN, reason="whether a signature is wanted cannot be read"
        )
    elif not signed and secure == "on" and config.get("CONFIG_IMA_ARCH_POLICY", "y") == "y":
        yield warned(
            str(target.path),
            state,
            source=SECURE_BOOT,
            reason="with Secure Boot IMA may want a signature (CONFIG_IMA_ARCH_POLICY)",
            remedy=remedy,
        )
    else:
        yield passed(str(target.path), state, LOCKDOWN)


def ima(situation: Situation) -> Iterator[Finding]:
    """Look for rules of IMA's policy that appraise what kexec reads."""
    rules = _appraised(situation.host)
    if "KEXEC_INITRAMFS_CHECK" in rules:
        yield warned(
            "IMA",
            "the policy appraises an initramfs (KEXEC_INITRAMFS_CHECK)",
            source=IMA_POLICY,
            reason="an upgrade adds a file to the initramfs, so that no signature fits; it may be refused",
            remedy="see kexec.file-load; if that fails, take the rule out of the policy",
        )
    elif "KEXEC_KERNEL_CHECK" in rules and not has_ima_signature(situation.target.path):
        yield warned(
            str(situation.target.path),
            "has no signature of IMA",
            source=IMA_POLICY,
            reason="the policy appraises kernels (KEXEC_KERNEL_CHECK); it may be refused",
            remedy="see kexec.file-load; if that fails, evmctl ima_sign with a key of this machine",
        )
    else:
        yield passed("IMA", "no policy refuses image or initrd", IMA_POLICY)


def _appraised(host: Host) -> set[str]:
    """Return which of kexec's files are appraised.

    The policy can be read only with CONFIG_IMA_READ_POLICY. Else there is none unless the command line names one or
    systemd loads ``/etc/ima/ima-policy`` at boot.

    :raises Unknown: if there may be one that cannot be read
    """
    text = host.read_or(IMA_POLICY, "")
    if text:
        return set(_RULES.findall(text))
    if host.exists(IMA_POLICY) and host.exists(IMA_FILE):
        raise Unknown(f"{IMA_FILE} was loaded at boot, and the policy cannot be read", subject="IMA")
    return {"KEXEC_KERNEL_CHECK"} if re.search(r"\bima_policy=\S*secure_boot", host.command_line()) else set()


def lockdown(host: Host) -> str | None:
    """Return ``none``, ``integrity`` or ``confidentiality``; None if it cannot be read."""
    try:
        text = host.read(LOCKDOWN)
    except FileNotFoundError:  # built without it, or securityfs is not mounted
        return "none" if host.list(SECURITY) else None
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else None


def secure_boot(host: Host) -> bool | None:
    """Tell whether firmware boots only what is signed; None if it cannot be read."""
    if not host.exists("/sys/firmware/efi"):
        return False
    try:
        content = host.path(SECURE_BOOT).read_bytes()
    except OSError:
        return None
    return content[4:5] == b"\1"  # after four bytes of attributes


def has_ima_signature(path: Path) -> bool:
    """Tell whether a file has one; any is taken for good."""
    try:
        return bool(os.getxattr(path, "security.ima"))
    except OSError:
        return False


def running_config(host: Host) -> Mapping[str, str]:
    """Return the running kernel's configuration: what is set; empty if there is no file of it.

    What is not set has the value ``n``.
    """
    release = host.release()
    for name in (f"/boot/config-{release}", f"/usr/lib/modules/{release}/config", "/proc/config.gz"):
        try:
            content = host.path(name).read_bytes()
        except OSError:
            continue
        text = (gzip.decompress(content) if name.endswith(".gz") else content).decode(errors="replace")
        unset = dict.fromkeys(re.findall(r"^# (CONFIG_\w+) is not set$", text, re.MULTILINE), "n")
        return {**unset, **dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))}
    return {}
