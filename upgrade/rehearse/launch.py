# SPDX-License-Identifier: MIT
"""Starting QEMU, with the files and the network that it needs, and tidying up after it."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from upgrade.process import environment, missing, run
from upgrade.rehearse import accelerator, network, seed
from upgrade.rehearse.cache import Cache, remove
from upgrade.rehearse.network import Network
from upgrade.rehearse.qemu import Devices, command_line
from upgrade.rehearse.spec import MachineSpec

CONSOLES_KEPT = 20


@dataclass(frozen=True, slots=True)
class Launched:
    """A QEMU that runs, whatever its guest does."""

    process: "subprocess.Popen[bytes]"
    devices: Devices
    network: Network
    accelerator: str


@contextmanager
def launched(spec: MachineSpec, cache: Cache) -> Iterator[Launched]:
    """Start a machine; what it needed goes away at the end, but the caller ends the machine itself."""
    with ExitStack() as stack:
        devices = prepare(stack, spec, cache)
        connection = stack.enter_context(network.connect(spec.ports, keep=spec.keep))
        accel = accelerator.EMULATION if spec.repeatable else accelerator.choose(cache, spec.kernel)
        yield Launched(start(spec, devices, connection, accel), devices, connection, accel)


def prepare(stack: ExitStack, spec: MachineSpec, cache: Cache) -> Devices:
    """Make the files a machine needs; all but the console go away with ``stack``."""
    machines = cache.directory("machines")
    with cache.lock("machines"):
        forget_old(machines)
        directory = Path(
            tempfile.mkdtemp(prefix=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-", dir=machines)
        )
    # The path of a socket may have 107 bytes, and the cache may lie deep.
    sockets = Path(tempfile.mkdtemp(prefix="seamless-upgrade-"))
    devices = Devices(directory, sockets, with_seed=bool(spec.seed))
    if not spec.keep:
        for path in (sockets, devices.disk, devices.seed):
            stack.callback(remove, path)
    base = spec.disk or spec.image.disk
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, devices.disk])
    if spec.seed:
        seed.build(spec.seed, devices.seed)
    return devices


def start(spec: MachineSpec, devices: Devices, connection: Network, accel: str) -> "subprocess.Popen[bytes]":
    """Start QEMU. It ends when this process does, however that happens, unless the machine is to be kept."""
    bound = [] if spec.keep else ["setpriv", "--pdeathsig", "TERM"]
    command = [*connection.prefix, *bound, *command_line(spec, devices, connection, accel)]
    with devices.messages.open("wb") as messages:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )
        except FileNotFoundError as e:
            raise missing(command[0]) from e


def forget_old(machines: Path) -> None:
    """Remove what machines left behind that were killed, or kept and ended since; some consoles stay."""
    gone = [old for old in sorted(machines.iterdir()) if not running(old)]
    for old in gone:
        Devices(old, old).disk.unlink(missing_ok=True)
        Devices(old, old).seed.unlink(missing_ok=True)
    for old in gone[:-CONSOLES_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def running(directory: Path) -> bool:
    """Tell whether the machine with this directory is being started, or runs."""
    owner = directory.name.split("-")[2]
    pidfile = Devices(directory, directory).pidfile
    pids = [owner, pidfile.read_text().strip()] if pidfile.exists() else [owner]
    return any(Path("/proc", pid).exists() for pid in pids)
