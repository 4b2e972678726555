# SPDX-License-Identifier: MIT
"""Builders of the binary formats that the tests read, instead of fixtures nobody can review."""
