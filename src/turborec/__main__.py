"""`python -m turborec` is the command `turborec`."""

from turborec.cli import main

if __name__ == "__main__":
    main()
