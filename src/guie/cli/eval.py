"""guie-eval: a run, a backbone alone or saved embeddings, on any data sets; by one process or torchrun's."""

from __future__ import annotations

from typing import Any

from guie.config.compose import enter
from guie.launch import placement


def run(cfg: dict[str, Any]) -> None:
    """Evaluate as `cfg` says; without torch where the embeddings are saved already."""
    from guie import evaluating
    from guie.cli.console import Notices, speak

    speak()
    if cfg["embeddings"]:
        if placement().rank == 0:  # one process is enough for vectors that are there
            evaluating.of_saved(cfg)
        return
    from guie.train.distributed import world

    with world(cfg["device"]) as here:
        evaluating.of_model(cfg, Notices(), here)


def main() -> None:
    """Console entry point."""
    enter("eval", run)


if __name__ == "__main__":
    main()
