# SPDX-License-Identifier: MIT
"""The exit statuses and the one error class that users meet.

Libraries raise :class:`UpgradeError`; only ``upgrade.cli`` turns it into an exit status.
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of ``seamless-upgrade``, the same for every verb."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    NOT_PRIVILEGED = 4
    DEGRADED = 5
    DEPENDENCY_MISSING = 6
    INTERRUPTED = 130


class UpgradeError(Exception):
    """Something a user can understand and act on.

    ``subject`` is what it is about (a container, a device, a file), ``hint`` the remedy.
    """

    def __init__(
        self,
        message: str,
        *,
        subject: str | None = None,
        hint: str | None = None,
        status: ExitStatus = ExitStatus.FAILED,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.subject = subject
        self.hint = hint
        self.status = status

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}" if self.subject else self.message

    def to_json(self) -> dict[str, str | int | None]:
        """Return the ``error`` object of every ``--json`` answer."""
        return {
            "message": self.message,
            "subject": self.subject,
            "hint": self.hint,
            "exit_status": int(self.status),
        }


class UsageError(UpgradeError):
    """The command line or a configuration file is wrong."""

    def __init__(self, message: str, *, subject: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, subject=subject, hint=hint, status=ExitStatus.USAGE)


class Refusal(UpgradeError):
    """The checks say no; nothing was touched."""

    def __init__(self, message: str, *, subject: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, subject=subject, hint=hint, status=ExitStatus.REFUSED)


class DependencyMissing(UpgradeError):
    """A program or library is not installed."""

    def __init__(self, message: str, *, subject: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, subject=subject, hint=hint, status=ExitStatus.DEPENDENCY_MISSING)


class Interrupted(UpgradeError):
    """A signal asked to stop; everything was undone."""

    def __init__(self, message: str = "interrupted") -> None:
        super().__init__(message, status=ExitStatus.INTERRUPTED)
