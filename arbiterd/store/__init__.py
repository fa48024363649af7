"""What the daemon keeps on disk over restarts and reboots."""
