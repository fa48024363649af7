"""arbiterctl."""
