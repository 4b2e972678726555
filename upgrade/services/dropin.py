# SPDX-License-Identifier: MIT
"""The drop-in that makes the start of a service its restore, until it is taken away.

The old kernel leaves it on disk, named by the session; the generator of the new kernel (``units/``) puts it where
systemd reads it before it starts anything. So no time goes to a second reading of all units. Where that did not work
it is written now, and systemd reads again.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from upgrade import files, paths
from upgrade.host import Host
from upgrade.services import systemd

FILE = "zz-seamless-upgrade.conf"
GENERATED = "/run/systemd/generator.early"
WRITTEN = "/run/systemd/system"
COMMANDS = ("/usr/local/sbin/seamless-upgrade", "/usr/sbin/seamless-upgrade")

# systemd reads the PID file when the command has ended; the process has to be in the service's cgroup, and it is.
# The plus sign: the restore itself needs every privilege, what it restores has its own.
# What ran before and after the start has run already. Restart=no: a restore that failed is not tried again by systemd.
# StandardOutput=: a file would be opened, and perhaps emptied, under the eyes of the service.
# After=: the boot's own start waits for the restore, whose start is out of turn and waits for nothing.
# OOMScoreAdjust=: CRIU restores a value only if it is not 0, and the restored would inherit this one.
_TEXT = """\
# Written by seamless-upgrade: systemd's first start of this service in this kernel restores it.
[Unit]
After={after}
ConditionPathExists=
AssertPathExists=
StartLimitIntervalSec=0
JobTimeoutSec=infinity
SuccessAction=none
FailureAction=none

[Service]
Type=forking
PIDFile={runtime}/%n.pid
ExecCondition=
ExecStartPre=
ExecStart=
ExecStart=+{command} restore-unit %n
ExecStartPost=
ExecStop=
ExecStopPost=
Restart=no
KillMode=control-group
SendSIGKILL=yes
TimeoutStartSec=infinity
WorkingDirectory=/
EnvironmentFile=
OOMScoreAdjust=0
NotifyAccess={notify_access}
SyslogIdentifier={identifier}
StandardOutput={output}
StandardError={error}
"""


def text(host: Host, data: Mapping[str, Any]) -> str:
    """Return the drop-in for a service with this ``data`` of its container."""
    command = next((each for each in COMMANDS if host.exists(each)), COMMANDS[0])
    return _TEXT.format(
        after=paths.RESTORED_UNIT if data.get("late") else "",
        runtime=paths.RUNTIME,
        command=command,
        notify_access=data["notify_access"],
        identifier=str(data["identifier"]).replace("%", "%%"),
        output=data["output"],
        error=data["error"],
    )


def spool(host: Host, session: str, name: str, data: Mapping[str, Any]) -> None:
    """Leave the drop-in on disk for the new kernel's generator."""
    files.write(paths.UNITS / session / f"{name}.d" / FILE, text(host, data))


def forget(session: str) -> None:
    """Remove from disk what was left there for a session."""
    import shutil  # of the old kernel only

    shutil.rmtree(paths.UNITS / session, ignore_errors=True)


def ensure(host: Host, name: str, data: Mapping[str, Any]) -> bool:
    """See that the drop-in is in effect; return whether systemd had to read all units again for it."""
    if host.exists(f"{GENERATED}/{name}.d/{FILE}"):
        return False
    print(
        f"{name}: its drop-in was not generated, systemd reads all units again", file=sys.stderr, flush=True
    )
    files.write(host.path(f"{WRITTEN}/{name}.d/{FILE}"), text(host, data))
    systemd.reload()
    return True


def remove(host: Host, name: str) -> bool:
    """Remove the drop-in wherever it is; return whether it was there. systemd has to read all units again then.

    On disk first: whatever makes systemd read again runs the generator again.
    """
    places = [*paths.UNITS.glob("*"), host.path(GENERATED), host.path(WRITTEN)]
    found = [file for file in (place / f"{name}.d" / FILE for place in places) if file.exists()]
    for file in found:
        file.unlink(missing_ok=True)
        with suppress(OSError):  # there is more in it
            file.parent.rmdir()
            if file.is_relative_to(paths.UNITS):
                file.parent.parent.rmdir()
    return bool(found)
