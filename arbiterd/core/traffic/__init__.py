"""Clients: doors, loads, and what requests tell of an engine."""
