# SPDX-License-Identifier: MIT
"""What the checks of containers find, told once for each container."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from upgrade.check.model import Finding, Status, passed
from upgrade.check.processes import Process

LOOKS = 5
PAUSE_S = 0.03
MOST_TOLD = 3


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something of a process that stands against an upgrade."""

    process: Process
    what: str
    """For example ``descriptor 5 is an io_uring``."""
    source: str
    reason: str
    remedy: str
    status: Status = Status.FAIL


def tell(troubles: Iterable[Trouble], subject: str, seen: str) -> Iterator[Finding]:
    """Yield a finding for each container and kind of trouble, or that all is well."""
    kinds: dict[tuple[str, str, str, Status], list[Trouble]] = {}
    for each in troubles:
        key = (each.process.container.name, each.reason, each.remedy, each.status)
        kinds.setdefault(key, []).append(each)
    for (name, reason, remedy, status), members in kinds.items():
        told = list(dict.fromkeys(f"{each.process}: {each.what}" for each in members))
        more = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
        yield Finding(status, name, "; ".join([*told[:MOST_TOLD], *more]), members[0].source, reason, remedy)
    if not kinds:
        yield passed(subject, seen)


def lasts(holds: Callable[[], bool]) -> bool:
    """Look several times at what may be over in a moment; tell whether it is there each time."""
    for look in range(LOOKS):
        if not holds():
            return False
        if look < LOOKS - 1:
            time.sleep(PAUSE_S)
    return True
