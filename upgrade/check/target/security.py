# SPDX-License-Identifier: MIT
"""The security modules: labels of tasks are restored only where the same module runs.

CRIU refuses to restore a task with a label under another module (``validate_lsm()`` in criu/lsm.c), and a profile
that is not loaded yet.
"""

from collections.abc import Iterator

from upgrade.check.model import Finding, failed, passed, skipped, warned
from upgrade.check.situation import Situation
from upgrade.check.target.use import Use, named
from upgrade.kexec import cmdline
from upgrade.kexec.kconfig import KernelConfig

LSM = "/sys/kernel/security/lsm"
# Of these one runs at a time (LSM_FLAG_EXCLUSIVE, security/security.c)
WITH_LABELS = ("apparmor", "selinux", "smack")
# Whose labels a dump holds (criu/lsm.c)
IN_DUMPS = ("apparmor", "selinux")


def security(situation: Situation) -> Iterator[Finding]:
    """Compare the module with labels that runs with the one that the new kernel starts."""
    host, use = situation.host, Use(situation)
    running = _first_with_labels(host.read_or(LSM, "").split(","))
    if not host.exists(LSM) and not use.labels:
        yield skipped("security modules", "not shown", source=LSM, reason="securityfs is not mounted")
        return
    line = f"{cmdline.base(host.command_line())} {situation.request.append}"
    target = of_kernel(situation.kernel_config, line)
    if running == target:
        yield from _same(use, running)
        return
    seen = f"{running or 'none'} runs, the new kernel starts {target or 'none'}"
    confined = sorted({name for names in use.labels.values() for name in names})
    if confined and running in IN_DUMPS:
        yield failed(
            "security modules",
            seen,
            source=LSM,
            reason=f"{named(confined)} has a label of {running}, which cannot be restored",
            remedy=f"add security={running} to the command line (--append), or choose a kernel that has it",
        )
    else:
        yield warned(
            "security modules",
            seen,
            source=LSM,
            reason="no container is confined, but the host is protected in another way afterwards",
            remedy=f"add security={running} to the command line (--append) to keep it"
            if running
            else "none needed",
        )


def _same(use: Use, running: str) -> Iterator[Finding]:
    labels = use.labels if running == "apparmor" else {}
    for label, names in labels.items():
        yield warned(
            named(names),
            f"is confined by {label}",
            source="/proc/PID/attr/current",
            reason="the restore comes early in the boot and fails if this profile is not loaded by then",
            remedy="load it before seamless-upgrade-restore.service: "
            "systemctl edit it with After=apparmor.service, if the profile is in /etc/apparmor.d",
        )
    if not labels:
        yield passed("security modules", f"{running or 'none with labels'}, as now", LSM)


def of_kernel(config: KernelConfig, command_line: str) -> str:
    """Return the module with labels that a kernel starts; empty if none (``ordered_lsm_init()``).

    ``lsm=`` replaces CONFIG_LSM; the older ``security=`` chooses among those with labels, unless there is ``lsm=``;
    ``apparmor=0`` and ``selinux=0`` switch one off.
    """
    words = dict(word.partition("=")[::2] for word in command_line.split())
    order = (words.get("lsm") or config.get("LSM") or config.get("DEFAULT_SECURITY")).split(",")
    if "lsm" not in words and words.get("security"):
        chosen = words["security"]
        order = [name for name in (*order, chosen) if name not in WITH_LABELS or name == chosen]
    built = [name for name in order if config.get(f"SECURITY_{name.upper()}") and words.get(name) != "0"]
    return _first_with_labels(built)


def _first_with_labels(names: list[str]) -> str:
    return next((name for name in names if name in WITH_LABELS), "")
