"""``python -m arbiterd.cli``: the same as arbiterctl."""

from arbiterd.cli import main

if __name__ == "__main__":
    main()
