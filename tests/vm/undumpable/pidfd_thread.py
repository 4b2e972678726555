# SPDX-License-Identifier: MIT
"""Runs in the guest: a pidfd of a thread."""

import os

from condition import hold

CHECK = "containers.descriptors"
PIDFD_THREAD = os.O_EXCL
hold(lambda: os.pidfd_open(os.getpid(), PIDFD_THREAD))
