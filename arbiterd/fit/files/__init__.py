"""What the files of models tell, without loading anything: safetensors and GGUF headers, config.json,
Ollama's store, SavedModels. No file is trusted: sizes and counts are bounded, a broken one is a sentence.
"""

from arbiterd.fit.files.find import models_of
from arbiterd.fit.files.read import Unreadable

__all__ = ["Unreadable", "models_of"]
