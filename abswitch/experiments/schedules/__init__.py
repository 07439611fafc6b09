"""Schedules: when a spec runs by itself, what is remembered of it, and the host's entry that starts it."""
