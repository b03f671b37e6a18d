"""The project's yardstick on real pictures: several domains, labels of train and test apart."""

from __future__ import annotations

from pathlib import Path

from guie.datasets.manifest import Manifest, open_manifest


def shared_multidomain(root: str, domains: list[str] | None = None, *, data_root: str) -> Manifest:
    """Return `root/protocol.csv`: splits train, query and index over six domains.

    `domains` keeps some of them. Copies that serve the program lie in `data_root/.guie`: `root` is only read.

    Raises:
        UserError: no protocol.csv below `root`, or a domain that it does not have.

    """
    place = Path(root).expanduser()
    manifest = open_manifest(
        place / "protocol.csv",
        place,
        "shared_multidomain",
        columns={"file": "path", "split": "role"},
        cache_dir=Path(data_root).expanduser() / ".guie",
    )
    return manifest if domains is None else manifest.keep_domains(domains)
