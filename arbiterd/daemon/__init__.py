"""The running daemon: start, loop, signals, end."""
