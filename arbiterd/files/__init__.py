"""Files that others may change: bounded reads, believed only from their owner, no link followed."""
