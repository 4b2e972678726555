# SPDX-License-Identifier: MIT
"""Throw-away machines in which an upgrade can be tried before it is done for real.

Nothing here touches the host it runs on, apart from the cache directory and, as root, one network
namespace for each running machine.
"""
