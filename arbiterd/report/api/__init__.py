"""The documents of the status API, rendered from the published snapshot."""
