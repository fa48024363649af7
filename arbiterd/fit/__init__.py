"""Does a model fit its memory cap? Judged from the headers of its files or from what Ollama answers."""
