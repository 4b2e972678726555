# SPDX-License-Identifier: MIT
"""The new kernel's side. Imports nothing heavy: import time is downtime."""
