# SPDX-License-Identifier: MIT
"""The dry run: would an upgrade work, on this host, with these containers, to that kernel? One family a module."""
