# SPDX-License-Identifier: MIT
"""Runs in the guest: a task with much memory, so that its dump takes long enough to be interrupted."""

import sys
import time

ballast = bytearray(b"ballast!" * (int(sys.argv[1]) << 17))
counter = 0
while True:
    counter += 1
    with open("/run/ballast", "w") as file:
        file.write(str(counter))
    time.sleep(0.1)
