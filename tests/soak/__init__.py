"""``make soak``: hours of load and random faults on the simulated host, and what grows meanwhile."""
