"""The load gate: a process of its own in front of Ollama (``python -m arbiterd.loadgate FILE``)."""
