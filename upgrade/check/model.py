# SPDX-License-Identifier: MIT
"""What a check is and what it says."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from upgrade.check.situation import Situation
from upgrade.errors import ExitStatus


class Status(StrEnum):
    """What a check found."""

    PASS = "pass"
    WARN = "warn"
    """The upgrade works, but something of it may not be as wished."""
    FAIL = "fail"
    """The upgrade is refused."""
    SKIP = "skip"
    """Not known: what is needed to know it is missing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check says of one subject (a container, a device, a file)."""

    status: Status
    subject: str
    seen: str
    """What was seen, for example ``kexec_load_disabled is 1``."""
    source: str = ""
    """Where: the file that was read."""
    reason: str = ""
    """What that means for an upgrade; not empty unless it passed."""
    remedy: str = ""
    figures: tuple[tuple[str, int], ...] = ()
    """What was measured, by its name with its unit, for machines."""
    exit_status: ExitStatus = ExitStatus.REFUSED
    """What the command ends with if nothing but this fails."""


def passed(
    subject: str, seen: str, source: str = "", *, figures: tuple[tuple[str, int], ...] = ()
) -> Finding:
    """Return that all is well."""
    return Finding(Status.PASS, subject, seen, source, figures=figures)


def warned(subject: str, seen: str, *, source: str = "", reason: str, remedy: str) -> Finding:
    """Return what does not stand against an upgrade, but should be known."""
    return Finding(Status.WARN, subject, seen, source, reason, remedy)


def failed(subject: str, seen: str, *, source: str = "", reason: str, remedy: str) -> Finding:
    """Return what stands against an upgrade."""
    return Finding(Status.FAIL, subject, seen, source, reason, remedy)


def skipped(subject: str, seen: str, *, source: str = "", reason: str, remedy: str = "") -> Finding:
    """Return that it is not known."""
    return Finding(Status.SKIP, subject, seen, source, reason, remedy)


@dataclass(frozen=True, slots=True)
class Check:
    """One question. ``id`` (``family.noun``) is stable: users write it into ``--skip`` and playbooks.

    ``run`` touches nothing. It yields at least one finding, a pass if there is nothing to say. What it raises is a
    finding as well, see :mod:`upgrade.check.runner`: an ``UpgradeError`` fails, a ``PermissionError`` and
    ``situation.Unknown`` skip.
    """

    id: str
    title: str
    run: Callable[[Situation], Iterable[Finding]]
    in_run: bool = True
    """Whether ``run`` asks, too; not where it finds out itself by doing it."""
    asked: bool = False
    """Whether it has an option of its own, because it does touch something; not asked without that."""

    @property
    def family(self) -> str:
        """Return the first part of the id."""
        return self.id.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Result:
    """A finding and the check that it is of."""

    check: Check
    finding: Finding

    def to_json(self) -> dict[str, Any]:
        """Return it for machines."""
        found = self.finding
        return {
            "id": self.check.id,
            "status": found.status.value,
            "subject": found.subject,
            "seen": found.seen,
            "source": found.source,
            "reason": found.reason,
            "remedy": found.remedy,
            **({"figures": dict(found.figures)} if found.figures else {}),
        }
