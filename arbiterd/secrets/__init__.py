"""Keys and tokens, and which values must not be shown."""
