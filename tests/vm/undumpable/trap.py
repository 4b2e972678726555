# SPDX-License-Identifier: MIT
"""Runs in the guest: a task with a SIGTRAP pending."""

import os
import signal

from condition import hold

CHECK = "containers.tasks"


def make() -> object:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTRAP])
    os.kill(os.getpid(), signal.SIGTRAP)
    return None


hold(make)
