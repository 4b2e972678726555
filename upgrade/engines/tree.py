# SPDX-License-Identifier: MIT
"""A tree of tasks in the host's namespaces: what CRIU is asked for, at dump and at restore."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from upgrade import cgroup
from upgrade.criu import Criu, CriuError, log_errors, messages
from upgrade.engines.base import GHOST_LIMIT_BYTES, Container, Images, Unlock
from upgrade.host import Host
from upgrade.restore import volatile


def dump_options(host: Host, container: Container, options: Any, owned: Iterable[str] = ()) -> None:
    """Dump with everything a plain service may have open, files in memory included.

    :param owned: directories in memory that belong to it as a whole
    """
    options.ext_unix_sk = True
    options.file_locks = True
    options.link_remap = True
    options.ghost_limit = GHOST_LIMIT_BYTES
    directory = images_of(options)
    if directory is not None:
        from upgrade.dump import volatile  # of the old kernel only

        volatile.save(host, cgroup.pids(host, container.cgroup), owned, directory)


def images_of(options: Any) -> Path | None:
    """Return the directory of the images that a dump with these options writes; None if none is meant to."""
    directory = getattr(options, "images_dir_fd", 0)
    return Path(f"/proc/self/fd/{directory}") if directory else None


def restore(
    host: Host,
    images: Images,
    unlock: Unlock,
    *,
    inherited: Mapping[str, int] | None = None,
    shell_job: bool = False,
) -> int:
    """Restore through CRIU itself and return the process id of the root, which becomes a child of init.

    :param inherited: our descriptors that take the place of what CRIU left out, by CRIU's names of that
    :param shell_job: the root is no session leader; it gets our session
    """
    volatile.restore(host, images.directory)
    rpc = messages()
    given = inherited or {}
    directory, work = (os.open(d, os.O_RDONLY | os.O_DIRECTORY) for d in (images.directory, images.work))
    try:
        options = rpc.criu_opts(
            images_dir_fd=directory,
            work_dir_fd=work,
            log_level=2,
            log_file="restore.log",
            notify_scripts=True,
            tcp_established=True,
            ext_unix_sk=True,
            file_locks=True,
            manage_cgroups=True,
            manage_cgroups_mode=rpc.SOFT,
            evasive_devices=True,
            lazy_pages=images.lazy,
            shell_job=shell_job,
            inherit_fd=[rpc.inherit_fd(key=key, fd=fd) for key, fd in given.items()],
        )

        def notify(script: str, _pid: int) -> bool:
            # CRIU tells of its network-unlock only for trees with a network namespace of their own. The sockets
            # exist since post-restore, and they leave repair mode only after it, as with CRIU's own lock.
            if script == "post-restore":
                unlock()
            return True

        with Criu(timeout_s=images.timeout_s, inherit=tuple(given.values())) as criu:
            return criu.restore(options, notify)
    except CriuError as e:
        raise CriuError(
            "; ".join(log_errors(images.work / "restore.log")) or e.message, subject="criu"
        ) from e
    finally:
        os.close(directory)
        os.close(work)
