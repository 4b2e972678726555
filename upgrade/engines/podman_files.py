# SPDX-License-Identifier: MIT
"""Files that podman and its runtime find at a restore, beside those that they make themselves."""

import os
from pathlib import Path

from upgrade import files
from upgrade.engines.base import Container, Images
from upgrade.host import Host

# podman's names, which its restore looks for in the container's own directory
CHECKPOINT = "checkpoint"
NETWORK_STATUS = "network.status"
SHM_ARCHIVE = "devshm-checkpoint.tar"
NAMES = (CHECKPOINT, NETWORK_STATUS, SHM_ARCHIVE)


def put(host: Host, container: Container, images: Images) -> None:
    """Put links to the images where podman looks for them, and make again what has ended with the old kernel."""
    for name in NAMES:
        target = images.directory if name == CHECKPOINT else images.directory / name
        _link(_place(host, container, name), target)
    for place, is_directory in container.data["places"]:
        _make(host.path(place), is_directory)
    for file, identity in container.data["id_files"]:
        files.write(host.path(file), identity)


def remove_links(host: Host, container: Container) -> None:
    """Take our images away from podman."""
    for name in NAMES:
        _unlink(_place(host, container, name))


def remove(host: Host, container: Container) -> None:
    """Remove what :func:`put` has put; podman would not start another container with the same ``--cidfile``."""
    remove_links(host, container)
    for file, _ in container.data["id_files"]:
        host.path(file).unlink(missing_ok=True)


def _place(host: Host, container: Container, name: str) -> Path:
    return host.path(os.path.join(container.data["directory"], name))


def _link(place: Path, target: Path) -> None:
    """Let a name lead to ``target``; what is there already, a checkpoint of somebody's own, is kept beside it."""
    _unlink(place)
    if place.exists():
        place.rename(_aside(place))
    if target.exists():
        place.symlink_to(target)


def _unlink(place: Path) -> None:
    """Undo :func:`_link`."""
    if place.is_symlink():
        place.unlink()
    if _aside(place).exists() and not place.exists():
        _aside(place).rename(place)


def _aside(place: Path) -> Path:
    return place.with_name(f"{place.name}.before-upgrade")


def _make(place: Path, is_directory: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if is_directory:
        place.mkdir(exist_ok=True)
    else:
        place.touch()
