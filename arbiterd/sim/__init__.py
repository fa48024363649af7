"""The machine without a GPU: a simulated GPU behind NVML's C interface, stand-in engines, the demo."""
