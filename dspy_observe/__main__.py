"""``python -m dspy_observe``: the command line, where its script is not on the path."""

from dspy_observe.cli import main

if __name__ == "__main__":
    main()
