"""The html pages of guie-prepare: one look, everything inside the file, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np

from guie.durable import write_durably

THUMBNAIL_PX = 112


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write the page that `template`, a file beside this one, makes of `values`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    write_durably(path, environment.get_template(template).render(**values).encode())


def address(image: np.ndarray) -> str:
    """Return (H,W,3) uint8 as a data: address of a small JPEG."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
