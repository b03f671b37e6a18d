"""Run as a script, in a process of its own: what does an exported file answer to who takes it?

`python -I -S asking.py MODEL ASKED DEVICE FOLDER...`: ASKED is a JSON list of {shape, dtype, pixels}, FOLDERs
are where torch and numpy live. Prints one line of JSON, for each question: `shape`, `dtype`, `finite`,
`off_unit` (largest distance of a length from 1), `repeats` (the same when asked again), or `error`.
Imports nothing of guie but files beside it; whoever opens a connection or asks for a host is refused.
"""

import json
import os
import runpy
import sys


def beside(name):
    """Return by name what a file beside this one defines."""
    return runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py"))


def refuse(event, arguments):
    """Stop whoever opens a connection or asks for a host."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise OSError(f"the network is not reachable ({event} {arguments[:2]})")


def drawn(question):
    """Return pictures as a question states them, the same each time."""
    import numpy as np

    random = np.random.default_rng(0)
    if question["pixels"] == "normalised":
        return random.standard_normal(question["shape"]).astype(question["dtype"])
    return random.integers(0, 256, question["shape"], dtype=np.uint8).astype(question["dtype"])


def answered(model, question):
    """Return what the model gives, in words of JSON."""
    import numpy as np

    images = drawn(question)
    try:
        found, again = model(images), model(images)
    except Exception as error:
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[-1]}
    lengths = np.sqrt((found.astype(np.float64) ** 2).sum(-1))
    return {
        "shape": list(found.shape),
        "dtype": str(found.dtype),
        "finite": bool(np.isfinite(found).all()),
        "off_unit": float(np.abs(lengths - 1).max()),
        "repeats": bool(np.array_equal(found, again)),
    }


def main():
    """Load and ask."""
    model_path, asked, device, *folders = sys.argv[1:]
    sys.path += folders
    sys.meta_path.insert(0, beside("fresh")["Absent"])
    sys.addaudithook(refuse)
    model = beside("runtime")["load"](model_path, device)
    print(json.dumps([answered(model, question) for question in json.loads(asked)]))


if __name__ == "__main__":
    main()
