# SPDX-License-Identifier: MIT
"""The record of what was stopped: on disk, so that whatever boot comes next starts it again."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from upgrade import cold, files
from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.report.model import ContainerOutcome, ContainerReport

REASON = "stopped before the jump and started after it, as --cold asked for"


@dataclass(frozen=True, slots=True)
class Stopped:
    """One container."""

    engine: str
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Record:
    """All that one upgrade has stopped."""

    session: str
    asked_ns: int
    """When they were told to stop, on the wall clock, nanoseconds since the epoch."""
    containers: tuple[Stopped, ...]

    def save(self, file: Path) -> None:
        """Write it to disk."""
        files.write(file, json.dumps(asdict(self)), mode=0o600)

    @classmethod
    def load(cls, file: Path) -> Self | None:
        """Return what was written; None if nothing is left to be started."""
        text = files.read(file)
        if text is None:
            return None
        data = json.loads(text)
        return cls(data["session"], data["asked_ns"], tuple(Stopped(**each) for each in data["containers"]))


def refuse(host: Host, name: str) -> None:
    """Refuse an engine one of whose containers could not be started again."""
    for each in cold.engine(host, name).running():
        if each.removed:
            raise Refusal(
                f"{name} removes it as soon as it stops (--rm)",
                subject=each.name,
                hint="stop it yourself, or start it without --rm",
            )


def stop(host: Host, engines: Sequence[str], session: str, file: Path) -> Record:
    """Stop all containers of some engines; they are written down before.

    :raises UpgradeError: if one does not stop
    """
    adapters = {name: cold.engine(host, name) for name in engines}
    found = {name: adapter.running() for name, adapter in adapters.items()}
    stopped = (Stopped(name, each.id, each.name) for name, running in found.items() for each in running)
    record = Record(session, time.time_ns(), tuple(stopped))
    record.save(file)
    for name, adapter in adapters.items():
        adapter.stop([each.id for each in found[name]])
    return record


def lost(started: Iterable[ContainerReport]) -> list[str]:
    """Return what is to be said of those that did not start, a line each."""
    return [f"{each.name}: {each.reason}" for each in started if each.outcome is ContainerOutcome.LOST]


def start(host: Host, record: Record) -> Iterator[ContainerReport]:
    """Start all again, in the order in which they had been started; say of each how that went."""
    for each in record.containers:
        try:
            started_ns = cold.engine(host, each.engine).start(each.id)
        except UpgradeError as e:
            yield ContainerReport(each.name, each.engine, ContainerOutcome.LOST, f"it does not start: {e}")
            continue
        seconds = max(0, started_ns - record.asked_ns) / 1e9
        yield ContainerReport(each.name, each.engine, ContainerOutcome.RESTARTED, REASON, seconds)
