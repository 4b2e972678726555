# SPDX-License-Identifier: MIT
"""Runs in the guest: a process whose first thread has ended."""

import threading
import time

from condition import hold, syscall

CHECK = "containers.tasks"
SYS_EXIT = 60
threading.Thread(target=lambda: (time.sleep(0.2), hold(lambda: None))).start()
syscall(SYS_EXIT, 0)
