"""Tells the world: journal, incidents, metrics, status."""
