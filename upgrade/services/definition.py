# SPDX-License-Identifier: MIT
"""A service as systemd has it: what the restore has to know of it, and what cannot be carried over."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upgrade import cgroup
from upgrade.errors import Refusal
from upgrade.host import Host
from upgrade.process import CommandFailed
from upgrade.services import activation, systemd

TYPES = ("simple", "exec", "idle", "forking", "notify", "notify-reload")
PROPERTIES = (
    *("Id", "LoadState", "ActiveState", "SubState", "Type", "MainPID", "ControlGroup", "NotifyAccess"),
    *(
        "WatchdogUSec",
        "SyslogIdentifier",
        "ExecStart",
        "PIDFile",
        "RuntimeDirectory",
        "PAMName",
        "StandardInput",
    ),
    *("StandardOutput", "StandardError", "DefaultDependencies", "TriggeredBy"),
)
# What gives a service a namespace of its own (systemd src/core/execute.c, exec_needs_mount_namespace() and others)
DIRECTIVES: Mapping[str, tuple[str, ...]] = {
    "mnt": (
        *("RootDirectory", "RootImage", "DynamicUser", "PrivateTmp", "PrivateDevices", "PrivateMounts"),
        *("ProtectSystem", "ProtectHome", "ProtectControlGroups", "ProtectKernelTunables"),
        *("ProtectKernelModules", "ProtectKernelLogs", "ProtectHostname", "ProtectProc", "ProcSubset"),
        *("PrivateIPC", "MountAPIVFS", "MountFlags", "LogNamespace", "NetworkNamespacePath"),
        *("ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths", "BindPaths"),
        *("BindReadOnlyPaths", "TemporaryFileSystem", "MountImages", "ExtensionImages"),
        "ExtensionDirectories",
    ),
    "net": ("PrivateNetwork", "NetworkNamespacePath"),
    "ipc": ("PrivateIPC", "IPCNamespacePath"),
    "uts": ("ProtectHostname",),
    "pid": ("PrivatePIDs",),
    "user": ("PrivateUsers",),
}
# The main process where podman's container, or pod, is the service
CONMON = "conmon"
# Values of these that give none
HARMLESS = ("", "no", "default", "all", "/", "[unprintable]")


@dataclass(frozen=True, slots=True)
class Definition:
    """A running service that can be carried over."""

    name: str
    cgroup: str
    main_pid: int
    properties: Mapping[str, str]

    def data(self, host: Host) -> dict[str, Any]:
        """Return what travels in the session record."""
        output = _stream(self.properties.get("StandardOutput", ""), "null")
        error = _stream(self.properties.get("StandardError", ""), "journal")
        return {
            "type": self.properties["Type"],
            "notify_access": self.properties.get("NotifyAccess") or "none",
            "identifier": self.properties.get("SyslogIdentifier") or _program(self.properties),
            "output": output,
            "error": "journal" if (output, error) == ("null", "inherit") else error,
            "watchdog": self.properties.get("WatchdogUSec", "0") not in ("", "0", "infinity"),
            "leads_session": int(cgroup.stat(host, self.main_pid)[3]) == self.main_pid,
            "owned": _owned(self.properties),
        }


def full_name(name: str) -> str:
    """Return a unit's name with its suffix."""
    return name if name.endswith(".service") else f"{name}.service"


def read(host: Host, name: str, *, container: bool = False) -> Definition:
    """Return a service that runs.

    :param container: it is one of podman's containers, whose tasks podman dumps and restores
    :raises Refusal: if there is none, or if it cannot be carried over
    """
    unit = full_name(name)
    try:
        found = systemd.show(unit, PROPERTIES)
    except CommandFailed as e:
        raise Refusal(f"systemd does not tell of it: {e}", subject=unit, hint="systemctl status") from e
    if found.get("LoadState") != "loaded":
        raise Refusal("systemd has no such service", subject=unit, hint="systemctl list-units --type=service")
    unit = found["Id"]
    _refuse_state(unit, found)
    definition = Definition(unit, found["ControlGroup"], int(found["MainPID"]), found)
    _refuse_kind(definition)
    if not container:
        _refuse_container(host, definition)
        _refuse_tasks(host, definition)
    _refuse_namespaces(host, definition)
    return definition


def _refuse_state(unit: str, found: Mapping[str, str]) -> None:
    if (found.get("ActiveState"), found.get("SubState")) != ("active", "running"):
        state = f"{found.get('ActiveState')} ({found.get('SubState')})"
        raise Refusal(
            f"does not run: it is {state}", subject=unit, hint=f"systemctl start {unit}, or leave it out"
        )
    if found.get("MainPID", "0") == "0" or not found.get("ControlGroup"):
        raise Refusal(
            "systemd does not know its main process",
            subject=unit,
            hint="give it a PIDFile=, or another Type= than forking",
        )


def _refuse_kind(service: Definition) -> None:
    found, unit = service.properties, service.name
    kind = found.get("Type", "")
    if kind not in TYPES:
        raise Refusal(
            f"is of Type={kind}"
            + (": its connection to D-Bus ends with this kernel" if kind == "dbus" else ""),
            subject=unit,
            hint="leave it out: it is stopped before the jump and started by the new kernel's boot",
        )
    activation.refuse(unit, found.get("TriggeredBy", "").split())
    if found.get("PAMName"):
        raise Refusal(
            f"has a session of its own (PAMName={found['PAMName']})",
            subject=unit,
            hint="leave it out; name what runs in it with --cgroup",
        )
    if found.get("DefaultDependencies") == "no":
        raise Refusal(
            "belongs to the early boot (DefaultDependencies=no), which starts it before anything can be restored",
            subject=unit,
            hint="leave it out",
        )
    if found.get("StandardInput", "null") not in ("null", "data", "file", ""):
        raise Refusal(
            f"reads from StandardInput={found['StandardInput']}, which ends with this kernel",
            subject=unit,
            hint="leave it out",
        )


def _refuse_container(host: Host, service: Definition) -> None:
    if host.read_or(f"/proc/{service.main_pid}/comm", "") == CONMON:
        raise Refusal(
            "is one of podman's containers",
            subject=service.name,
            hint="give --container the name that podman ps shows",
        )


def _refuse_tasks(host: Host, service: Definition) -> None:
    pids = cgroup.pids(host, service.cgroup)
    parents = {pid: cgroup.parent(host, pid) for pid in pids}
    others = [pid for pid in pids if pid != service.main_pid and parents[pid] not in parents]
    if service.main_pid not in parents:
        raise Refusal(
            f"its main process {service.main_pid} is not in {service.cgroup}",
            subject=service.name,
            hint="leave it out",
        )
    if others:
        listed = ", ".join(f"{pid} ({host.read_or(f'/proc/{pid}/comm', '?')})" for pid in others)
        raise Refusal(
            f"has tasks that do not descend from its main process {service.main_pid}, and CRIU dumps one tree: "
            f"{listed}",
            subject=service.name,
            hint="end them, or have the main process start them",
        )


def _refuse_namespaces(host: Host, service: Definition) -> None:
    for kind, directives in DIRECTIVES.items():
        own, theirs = (os.readlink(host.path(f"/proc/{pid}/ns/{kind}")) for pid in ("self", service.main_pid))
        if own != theirs:
            causes = _causes(service.name, directives)
            raise Refusal(
                f"has a {kind} namespace of its own"
                + (f", because of {', '.join(causes)}" if causes else ""),
                subject=service.name,
                hint=f"systemctl edit {service.name}, switch that off and restart it; or leave it out"
                if causes
                else "leave it out",
            )


def _causes(unit: str, directives: Sequence[str]) -> list[str]:
    """Return the directives that give a service a namespace, as they are set."""
    found = systemd.show(unit, directives)
    return [f"{name}={found[name]}" for name in directives if found.get(name, "") not in HARMLESS]


def _stream(setting: str, otherwise: str) -> str:
    """Return where a restore may write: to what the service writes to if that can be opened twice without harm."""
    return (
        setting
        if setting.partition("+")[0] in ("inherit", "journal", "kmsg", "syslog", "null")
        else otherwise
    )


def _program(properties: Mapping[str, str]) -> str:
    """Return by what name systemd calls the lines of a service in the journal: that of its program."""
    path = properties.get("ExecStart", "").partition("path=")[2].partition(" ;")[0]
    return os.path.basename(path) or properties["Id"].removesuffix(".service")


def _owned(properties: Mapping[str, str]) -> list[str]:
    """Return the paths in ``/run`` that are a service's own: they end with this kernel."""
    owned = [f"/run/{each}" for each in properties.get("RuntimeDirectory", "").split()]
    return owned + ([properties["PIDFile"]] if properties.get("PIDFile") else [])
