"""The configuration file: parsed by pydantic-settings, every problem reported at once."""

from arbiterd.config.hardware import check_devices
from arbiterd.config.load import Loaded, load

__all__ = ["Loaded", "check_devices", "load"]
