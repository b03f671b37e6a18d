"""guie-compare: is the gain of one evaluation over another real?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guie.config.compose import enter

FOLDERS = ("baseline", "candidate")


def run(cfg: dict[str, Any]) -> None:
    """Compare as `cfg` says; no torch."""
    from guie.comparing.story import compare_configured

    compare_configured(cfg)


def with_keys(words: Sequence[str]) -> list[str]:
    """Return the command line with `runs/a runs/b` as `baseline=runs/a candidate=runs/b`."""
    named, keys = [], list(FOLDERS)
    for position, word in enumerate(words):
        of_option = position > 0 and words[position - 1].startswith("-") and "=" not in words[position - 1]
        is_folder = not word.startswith("-") and ("=" not in word or Path(word).is_dir())
        named.append(f"{keys.pop(0)}={word}" if keys and is_folder and not of_option else word)
    return named


def main() -> None:
    """Console entry point."""
    sys.argv[1:] = with_keys(sys.argv[1:])
    enter("compare", run)


if __name__ == "__main__":
    main()
