"""Devices: who holds what, what may begin, and what is done before one overflows."""
