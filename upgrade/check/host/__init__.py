# SPDX-License-Identifier: MIT
"""Is this the moment, and is everything installed?"""

from upgrade.check.host import engines, installed, moment, resources, services, updates
from upgrade.check.model import Check

CHECKS = (
    Check("host.programs", "the programs that are needed are installed", installed.programs),
    Check("host.criu", "CRIU and its Python library fit together", installed.criu),
    Check("host.units", "the units that restore the containers are enabled", installed.units),
    Check("host.space", "there is room for reports and state", resources.space),
    Check("host.clock", "time runs on across the jump", resources.clock),
    Check("host.packages", "no package is being installed", moment.packages),
    Check("host.updates", "no newer CRIU or engine waits to be installed", updates.updates),
    Check("host.session", "no other upgrade goes on", moment.unfinished),
    Check("host.containers", "no container ends that was forgotten", engines.forgotten),
    Check("host.services", "the other services come back by themselves", services.services),
)
