"""Which accepted settings are in force, and how a changed file is taken."""
