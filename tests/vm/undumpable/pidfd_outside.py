# SPDX-License-Identifier: MIT
"""Runs in the guest: a pidfd of a process outside."""

import os

from condition import hold

CHECK = "containers.descriptors"
hold(lambda: os.pidfd_open(1))
