"""``python -m dspy_observe.demo``."""

from __future__ import annotations

from dspy_observe.demo.run import main

if __name__ == "__main__":
    raise SystemExit(main())
