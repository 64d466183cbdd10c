"""``python -m dspy_observe.demo``: at first what is seen, then what is done about it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from dspy_observe.demo import run
from dspy_observe.demo.loop.story import tell


def main(arguments: Sequence[str] | None = None) -> int:
    """Play both parts, or the one that ``--only`` names.

    Args:
        arguments: The command line without the program's name; ``None`` takes that of the process.

    Returns:
        0 when the observed totals agree with the bill and the loop closed, 1 when not, 130 when the user broke off.
    """
    options = run.parse(arguments)
    code = run.play(options) if options.only != "loop" else 0
    if code != 0 or options.only == "observe":
        return code
    try:
        return 0 if tell(Console(), plain=options.plain, embedded=options.embedded) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
