"""Layouts: what differs, the way from one to the other, and back."""
