"""``python -m vse``: the same as the command ``vse``."""

from vse.cli import main

if __name__ == "__main__":
    main()
