"""Faults as data: what is broken, what is promised, and one check that follows each of them."""
