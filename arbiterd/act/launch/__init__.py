"""Launchers: engines as systemd units or as children of wardens."""
