# SPDX-License-Identifier: MIT
"""Is the CRIU of this host known to work on the kernel to enter, and with these containers?

``criu check`` is not called: it loads modules and writes ``/run/criu.kdat``. ``run`` calls it, before it touches
anything itself.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from upgrade import criu as client
from upgrade.check.model import Finding, failed, passed, skipped, warned
from upgrade.check.situation import Situation, Unknown
from upgrade.check.target.use import Use, named
from upgrade.criu import Criu, CriuVersion
from upgrade.errors import DependencyMissing
from upgrade.host import Host
from upgrade.kexec import installed

# include/uapi/linux/fs.h, since Linux 6.15 (its commit a516403787e0)
PAGE_IS_GUARD = 1 << 8
_USER_SPACE_END = 0x7FFF_FFFF_F000
_VCLOCK = b"[vvar_vclock]\0"
# What an unpatched kernel of this version surely has; stable series got it at any time
_PROPAGATION_RELEASE = "6.16"
# CONFIG_CHECKPOINT_RESTORE of the kernel that runs (criu/cr-check.c)
SHOWN = ("/proc/sys/kernel/ns_last_pid", "/proc/self/map_files")


@dataclass(frozen=True, slots=True)
class Requirement:
    """What only a newer CRIU can do."""

    version: tuple[int, int, int]
    what: str
    link: str
    by: Callable[[Situation], Sequence[str]]
    """Who needs it; nobody: an older CRIU does."""
    fails: Callable[[Situation], bool]


def _vclock(situation: Situation) -> Sequence[str]:
    return [situation.target.release] if _VCLOCK in situation.vmlinux else []


def _own_mounts(situation: Situation) -> Sequence[str]:
    return Use(situation).namespaces("mnt")


def _is_strict(situation: Situation) -> bool:
    return installed.order(situation.target.release) >= installed.order(_PROPAGATION_RELEASE)


def _small_rseq(situation: Situation) -> Sequence[str]:
    version = os.confstr("CS_GNU_LIBC_VERSION") or ""
    return [version] if installed.order(version) >= installed.order("glibc 2.40") else []


def _guards(situation: Situation) -> Sequence[str]:
    return sorted({c.name for c, pid in Use(situation).tasks if has_guards(situation.host, pid)})


def _droppable(situation: Situation) -> Sequence[str]:
    return sorted({c.name for c, pid in Use(situation).tasks if has_droppable(situation.host, pid)})


def _always(situation: Situation) -> bool:
    return True


def _never(situation: Situation) -> bool:
    return False


_CRIU = "https://github.com/checkpoint-restore/criu"
REQUIREMENTS = (
    Requirement(
        (3, 17, 0),
        "restores restartable sequences, which every new C library registers",
        f"{_CRIU}/issues/1696",
        lambda situation: ["every container"],
        _always,
    ),
    Requirement(
        (4, 0, 0),
        "knows that the C library counts its restartable sequences in another way since 2.40",
        f"{_CRIU}/commit/089345f77a34d1bc7ef146d650636afcd3cdda21",
        _small_rseq,
        _never,
    ),
    Requirement(
        (4, 1, 0),
        "knows the data pages of virtual clocks (vvar_vclock, Linux 6.13)",
        f"{_CRIU}/issues/2532",
        _vclock,
        _always,
    ),
    Requirement(
        (4, 1, 1),
        "restores mounts on kernels that refuse to change the propagation of others' mounts (Linux 6.16 and stable "
        "series since June 2025)",
        f"{_CRIU}/pull/2701",
        _own_mounts,
        _is_strict,
    ),
    Requirement(
        (4, 2, 0),
        "leaves out guard pages (MADV_GUARD_INSTALL), which cannot be read",
        f"{_CRIU}/commit/cc047d595f742e416220d2d7740334500eb96a85",
        _guards,
        _always,
    ),
    Requirement(
        (4, 2, 0),
        "restores droppable memory as such; else a child process draws the same random numbers as its parent",
        f"{_CRIU}/commit/b90cfc1a80f69ff1fc7595c349c81d73e7f7ccc0",
        _droppable,
        _never,
    ),
)


def criu(situation: Situation) -> Iterator[Finding]:
    """Compare CRIU's version with what kernel and containers need."""
    with Criu() as process:
        version = process.version()
    bad, known = [*_not_shown(situation.host), *_messages(version)], True
    for requirement in REQUIREMENTS:
        if (version.major, version.minor, version.sublevel) < requirement.version:
            try:
                by = requirement.by(situation)
            except Unknown as e:
                known = False
                text = f"CRIU {_text(requirement.version)} {requirement.what}"
                yield skipped(
                    f"CRIU {version}",
                    f"{e.subject}: {e}",
                    source=requirement.link,
                    reason=f"it is not known whether it is needed that {text}",
                )
                continue
            if by:
                bad.append(_too_old(situation, requirement, version, by))
    yield from bad
    if not bad and known:
        yield passed(f"CRIU {version}", f"nothing is known that it cannot do on {situation.target.release}")


def has_guards(host: Host, pid: int) -> bool:
    """Tell whether a process has guard pages; False where the kernel cannot say (it cannot have any, mostly)."""
    from memfs import calls  # numpy

    try:
        fd = os.open(host.path(f"/proc/{pid}/pagemap"), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return False
    try:
        return len(calls.pagemap_scan(fd, 0, _USER_SPACE_END, any_of=PAGE_IS_GUARD)) > 0
    except PermissionError:
        raise
    except OSError:  # EINVAL before Linux 6.15, ENOTTY before 6.7, ESRCH of a task that ended
        return False
    finally:
        os.close(fd)


def has_droppable(host: Host, pid: int) -> bool:
    """Tell whether a process has memory of MAP_DROPPABLE (``dp`` in proc_pid_smaps(5))."""
    try:
        with host.path(f"/proc/{pid}/smaps").open(errors="replace") as file:
            return any(line.startswith("VmFlags:") and " dp" in line for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return False


def _not_shown(host: Host) -> Iterator[Finding]:
    for path in SHOWN:
        if not host.exists(path):
            yield failed(
                "running kernel",
                f"has no {path}",
                source=path,
                reason="CRIU cannot dump anything without",
                remedy="boot a kernel with CONFIG_CHECKPOINT_RESTORE once",
            )


def _messages(version: CriuVersion) -> Iterator[Finding]:
    """Compare the format of page maps, which changed in CRIU 4.2, with the one that pycriu reads."""
    try:
        reads = "compat_nr_pages" in client.pagemap_messages().pagemap_entry.DESCRIPTOR.fields_by_name
    except DependencyMissing as e:
        yield failed("pycriu", e.message, reason="the page maps cannot be read", remedy=e.hint or "")
        return
    if (version.major, version.minor) >= (4, 2) and not reads:
        yield failed(
            "pycriu",
            f"is older than 4.2, CRIU is {version}",
            source="pycriu/images/pagemap_pb2.py",
            reason="it reads every page map of this CRIU as empty",
            remedy="install criu and python3-pycriu of the same version",
        )


def _too_old(
    situation: Situation, requirement: Requirement, version: CriuVersion, by: Sequence[str]
) -> Finding:
    wanted = _text(requirement.version)
    make = failed if requirement.fails(situation) else warned
    return make(
        f"CRIU {version}",
        f"is older than {wanted}, which {requirement.what}",
        source=requirement.link,
        reason=f"needed by {named(by)}",
        remedy=f"install CRIU {wanted} or newer, with the python3-pycriu of the same version",
    )


def _text(version: tuple[int, int, int]) -> str:
    return str(CriuVersion(*version))
