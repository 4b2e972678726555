# SPDX-License-Identifier: MIT
"""Memory that survives kexec: physical ranges, their pmem devices and what is stored there.

Knows nothing of containers and imports nothing of ``upgrade``.
"""
