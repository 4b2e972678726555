# SPDX-License-Identifier: MIT
"""Comparing ways to replace a kernel: cells of a matrix, measured in rehearsal machines."""
