"""The configuration file: parsed by pydantic-settings, every problem reported at once."""

from arbiterd.config.hardware import check_devices
from arbiterd.config.load import Loaded, default_path, load, runtime_dir_of

__all__ = ["Loaded", "check_devices", "default_path", "load", "runtime_dir_of"]
