"""Reads the world: NVML, processes, health, host facts."""
