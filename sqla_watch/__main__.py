"""`python -m sqla_watch` is the command `sqla-watch`."""

from sqla_watch.cli import main

if __name__ == "__main__":
    main()
