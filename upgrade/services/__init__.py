# SPDX-License-Identifier: MIT
"""Services of systemd: dumped like any task tree, restored by systemd itself.

In the new kernel a drop-in makes the service's start command a restore, so that systemd takes the old processes for
what it has just started: same cgroup, same main PID, standard output in the journal.
"""
