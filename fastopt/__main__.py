"""`python -m fastopt` is the command `fastopt`."""

from .cli import main

if __name__ == "__main__":
    main()
