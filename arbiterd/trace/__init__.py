"""Traces: recording what the daemon saw and decided, and replaying it."""
