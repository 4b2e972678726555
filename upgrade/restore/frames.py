# SPDX-License-Identifier: MIT
"""The frames in the new kernel: the map goes to the start of its range, and the range becomes a file system.

Its files are the ``pages-N.img`` that the images name. Whoever reads them reads the page frames themselves.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from threading import Thread

from memfs import checksums, install, namespace, samples
from memfs.ranges import Range
from upgrade import linux, paths, ranges
from upgrade.errors import UpgradeError
from upgrade.host import Host
from upgrade.process import run
from upgrade.session import FRAMES_FILE, SAMPLES_FILE, Dumped, FrameRecord, Session

TIMEOUT_S = 30.0


class FrameMount(Thread):
    """Mounts the frames beside whatever else there is to do."""

    def __init__(self, host: Host, session: Session, record: FrameRecord) -> None:
        super().__init__(name="frames", daemon=True)
        self.host = host
        self.session = session
        self.record = record
        self.error: Exception | None = None
        self.samples: samples.Samples = {}

    def run(self) -> None:
        """Mount; an error is kept for whoever waits."""
        try:
            mount(self.host, self.record)
            self.samples = digests(self.record)
            for number, dumped in enumerate(self.session.containers):
                show(number, dumped)
        except Exception as e:
            self.error = e

    def wait(self) -> None:
        """Return when the frames can be read; raises what kept them from it."""
        self.join()
        if self.error is not None:
            raise self.error

    def damage(self, number: int) -> list[str]:
        """Return what is wrong with the frames of a container, a line a file."""
        own = {name: taken for name, taken in self.samples.items() if name.startswith(f"{number}-")}
        return [str(each) for each in samples.verify(paths.FRAMES, own, os.cpu_count() or 1)]


def hold_back(host: Host, spans: tuple[Range, ...]) -> None:
    """Keep the kernel from making a dax device of each range: that takes time, and would have to be undone."""
    for span in spans:
        space = namespace.find(span, host.root)
        if space is not None and not space.driver and not space.holder:
            namespace.force_raw(space)


def mount(host: Host, record: FrameRecord) -> None:
    """Write the frame map to where it belongs and mount it.

    :raises UpgradeError: if it cannot be believed; or if the kernel does not read it from the frames themselves
    """
    if os.path.ismount(paths.FRAMES) and _with_dax(host, paths.FRAMES):
        return  # by a restore process that died
    file = paths.STORE / FRAMES_FILE
    if checksums.of_file(file) != record.file:
        raise UpgradeError("is damaged (its checksum differs)", subject="frame map")
    spaces = [namespace.wait(span, TIMEOUT_S, host.root) for span in record.spans]
    for number, space in enumerate(spaces):
        device = namespace.make_block_device(space, raw=True, timeout_s=TIMEOUT_S)
        if number == 0:
            install.install(file, device)
        else:
            install.blank(device)
    devices = [namespace.make_block_device(space, raw=False, timeout_s=TIMEOUT_S) for space in spaces]
    for device in devices:
        if host.read(f"/sys/block/{device.name}/queue/dax") != "1":
            raise UpgradeError("has no DAX: the frames would be read through a cache", subject=str(device))
    options = ",".join(["ro", "dax=always", *(f"device={device}" for device in devices[1:])])
    paths.FRAMES.mkdir(mode=0o700, exist_ok=True)
    run(["mount", "-t", "erofs", "-o", options, os.fspath(devices[0]), os.fspath(paths.FRAMES)])
    if not _with_dax(host, paths.FRAMES):
        run(["umount", os.fspath(paths.FRAMES)])
        raise UpgradeError("was mounted without DAX", subject="frame map")


def show(number: int, dumped: Dumped) -> None:
    """Let a container's images be the files of the frame map.

    Mounts and not links: CRIU opens them from inside the container, where no path leads out.
    """
    for name in dumped.frame_files:
        place = paths.STORE / dumped.directory / name
        if os.path.ismount(place):
            continue
        place.touch(mode=0o600)
        linux.bind_mount(os.fspath(paths.FRAMES / f"{number}-{name}"), os.fspath(place))


def digests(record: FrameRecord) -> samples.Samples:
    """Return the digests that the old kernel took.

    :raises UpgradeError: if they cannot be believed
    """
    file = paths.STORE / SAMPLES_FILE
    if checksums.of_file(file) != record.samples:
        raise UpgradeError("are damaged (their checksum differs)", subject="digests of the frames")
    return samples.load(file)


def _with_dax(host: Host, where: Path) -> bool:
    for line in host.read("/proc/mounts").splitlines():
        words = line.split()
        if words[1] == os.fspath(where):
            return "dax=always" in words[3].split(",")
    return False


def give_back(host: Host, containers: Iterable[Dumped] = ()) -> list[str]:
    """Unmount the frames and give their ranges to the allocator; return what could not be done, a line each."""
    problems = []
    try:
        for dumped in containers:
            for name in dumped.frame_files:
                place = paths.STORE / dumped.directory / name
                if os.path.ismount(place):
                    linux.unmount(os.fspath(place))
        if os.path.ismount(paths.FRAMES):
            run(["umount", os.fspath(paths.FRAMES)])
            paths.FRAMES.rmdir()
    except Exception as e:
        return [f"the frames stay mounted: {e}"]
    for span in ranges.for_frames(host):
        try:
            ranges.bring_online(host, span)
        except Exception as e:
            problems.append(f"{span} is not online: {e}")
    return problems
