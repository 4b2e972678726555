# SPDX-License-Identifier: MIT
"""Runs in the guest: a stopped task."""

import os
import signal

from condition import ready

ready()
os.kill(os.getpid(), signal.SIGSTOP)
