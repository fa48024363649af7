"""gpu-arbiter: keeps several inference servers on one GPU within their caps."""

__version__ = "0.2.0"
