"""Changes the world: launchers and the executor."""
