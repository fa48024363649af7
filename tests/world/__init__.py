"""A closed-loop world: cards, engines, strangers and traffic that react to what core decides.

Deterministic and seeded; no processes, no clock, no files. See docs/traces.md.
"""
