"""The gateway: HAProxy's configuration and maps (pure text), its Runtime API, and the load gate."""
