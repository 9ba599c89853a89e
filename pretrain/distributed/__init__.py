"""Processes: ranks and their layout, launcher, run lease, preemption, hang watchdog."""
