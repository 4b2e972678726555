# SPDX-License-Identifier: MIT
"""What an engine asks CRIU for when it dumps: found out by letting it fill in a form."""

from dataclasses import dataclass, field
from types import SimpleNamespace

from upgrade.engines import Container, engine
from upgrade.host import Host


class _Mounts(list[SimpleNamespace]):
    def add(self) -> SimpleNamespace:
        self.append(SimpleNamespace(key="", val=""))
        return self[-1]


@dataclass
class DumpOptions:
    """Those of ``criu_opts`` that decide what can be dumped, with CRIU's own defaults (criu/config.c)."""

    ext_unix_sk: bool = False
    file_locks: bool = False
    ghost_limit: int = 1 << 20
    """Bytes."""
    link_remap: bool = False
    orphan_pts_master: bool = False
    shell_job: bool = False
    root: str = "/"
    external: list[str] = field(default_factory=list)
    ext_mnt: _Mounts = field(default_factory=_Mounts)

    @property
    def external_mounts(self) -> frozenset[str]:
        """The mount points that are not dumped."""
        return frozenset(mount.key for mount in self.ext_mnt)


def of(host: Host, container: Container) -> DumpOptions:
    """Return the options for a container."""
    found = DumpOptions()
    engine(host, container.engine).dump_options(container, found)
    return found
