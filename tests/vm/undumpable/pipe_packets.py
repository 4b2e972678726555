# SPDX-License-Identifier: MIT
"""Runs in the guest: a pipe in packet mode."""

import os

from condition import hold

CHECK = "containers.pipes"
hold(lambda: os.pipe2(os.O_DIRECT))
