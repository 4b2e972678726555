# SPDX-License-Identifier: MIT
"""Runs in the guest: an open block device."""

import os

from condition import hold

CHECK = "containers.devices"
hold(lambda: os.open("/dev/vda", os.O_RDONLY))
