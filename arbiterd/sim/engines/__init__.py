"""Stand-in engines: real processes, flags, endpoints, texts and exit codes; simulated GPU memory.

They follow docs/facts/engines.md. Misbehaviour is switched on from outside, by a JSON file named in
GPU_SIM_FAULTS that is read again whenever it changes (``common.Faults`` lists the keys).
"""
