"""guie-submit: the file that a challenge takes, written and checked, or only checked."""

from __future__ import annotations

from typing import Any

from guie.config.compose import enter


def run(cfg: dict[str, Any]) -> None:
    """Write or check as `cfg` says."""
    from guie.submit.story import submit_configured

    submit_configured(cfg)


def main() -> None:
    """Console entry point."""
    enter("submit", run)


if __name__ == "__main__":
    main()
