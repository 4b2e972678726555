# SPDX-License-Identifier: MIT
"""The programs of a benchmark that run in the guest. Standard library, and what is installed there anyway."""
