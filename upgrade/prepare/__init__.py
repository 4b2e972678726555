# SPDX-License-Identifier: MIT
"""Making a host ready for upgrades: memory set aside, units enabled, and all of it taken back."""
