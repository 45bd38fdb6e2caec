"""``python -m anlage`` is ``anlage``; torchrun starts it this way."""

from anlage.cli import main

if __name__ == "__main__":
    main()
