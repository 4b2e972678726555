# SPDX-License-Identifier: MIT
"""Replace the kernel of a running container host without restarting the containers."""

VERSION = "0.1.0"
