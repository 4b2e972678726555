# SPDX-License-Identifier: MIT
"""Can the kernel that is to be entered do what is needed?"""

from upgrade.check.model import Check
from upgrade.check.target import config, criu, image, initrd, modules, security, vdso

CHECKS = (
    Check("target.kernel", "the kernel's image and initrd are there", image.kernel),
    Check("target.downgrade", "the kernel is not older than the one that runs", image.downgrade),
    Check("target.config", "it was built with what a restore needs", config.config),
    Check("target.modules", "its modules are installed, with all that are in use", modules.modules),
    Check("target.initrd", "its initrd can reach the root file system", initrd.initrd),
    Check("target.features", "its command line takes nothing away", config.features),
    Check("target.security", "its security modules are those that run", security.security),
    Check("target.criu", "this CRIU works on it", criu.criu),
    Check("target.vdso", "programs find in its vDSO what they call", vdso.vdso),
)
