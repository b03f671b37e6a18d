"""Run as a script, in a process of its own: does an exported file reproduce its golden pairs without guie?

`python -I -S fresh.py MODEL GOLDEN DEVICE FOLDER...`: FOLDERs are where torch and numpy live; `-S` keeps .pth
files, so editable installs, out of the path. Prints one line of JSON: `difference` (largest, absolute),
`cosine` (least), `faults` (wrong shapes, dtypes or lengths), `sizes`, `dtypes`, `batches`, `smuggled` (hidden
packages that came in). Imports nothing of guie but the file that bundles hold, and refuses whoever tries.
"""

import importlib.util
import json
import os
import sys

ABSENT = ("guie", "timm", "open_clip", "torchvision")
# What must not be needed where torch is not the engine.
TORCH_FREE = ("onnx", "openvino")
# How far a vector's length may be from 1: a cosine alone would not tell.
NEAR = 1e-3


class Absent:
    """A finder that hides the packages an exported file must not need."""

    hidden: tuple = ABSENT

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Refuse a hidden name, leave every other to the finders behind."""
        if name.partition(".")[0] in cls.hidden:
            raise ModuleNotFoundError(f"{name} is kept out of the verification", name=name)


def runtime():
    """Return the module beside this file that every bundle holds a copy of."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "runtime.py")
    spec = importlib.util.spec_from_file_location("runtime", path)
    assert spec and spec.loader, "a file that is there has both"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pairs(golden):
    """Yield (images, expected) for each size, batch and dtype that the golden file asks for."""
    for key in sorted(name for name in golden.files if name.startswith("images_")):
        images, expected = golden[key], golden[key.replace("images_", "vectors_")]
        for position, batch in enumerate(golden["batches"].tolist()):
            yield images[:batch], expected[:batch]
            # One float batch per size: the conversion does not depend on the batch.
            if position == 0 and images.dtype == "uint8":
                yield images[:batch].astype("float32"), expected[:batch]


def compare(model_path, golden_path, device):
    """Return the report that is printed."""
    import numpy as np

    model = runtime().load(model_path, device)
    worst, least, faults, sizes, dtypes, batches = 0.0, 1.0, [], [], set(), set()
    for images, expected in pairs(np.load(golden_path)):
        found = model(images)
        if found.shape != expected.shape or found.dtype != np.float32:
            faults.append(f"{images.shape} {images.dtype} gave {found.shape} {found.dtype}")
            continue
        lengths = np.linalg.norm(found.astype(float), axis=1)
        if np.abs(lengths - 1).max() > NEAR:
            faults.append(f"{images.shape} {images.dtype} gave vectors of length {lengths.max():.6g}")
            continue
        # numpy keeps what is not a number, Python's max() would lose it.
        worst = float(np.max([worst, np.abs(found - expected).max()]))
        least = float(np.min([least, ((found.astype(float) * expected).sum(1) / lengths).min()]))
        size = list(images.shape[2:])
        sizes += [] if size in sizes else [size]
        dtypes.add(str(images.dtype))
        batches.add(len(images))
    return {
        "difference": worst,
        "cosine": least,
        "faults": faults,
        "sizes": sizes,
        "dtypes": sorted(dtypes),
        "batches": sorted(batches),
    }


def main():
    """Compare, then make sure that nothing hidden came in by another door."""
    model_path, golden_path, device, *folders = sys.argv[1:]
    sys.path += folders
    sys.meta_path.insert(0, Absent)
    if runtime().kind(model_path) in TORCH_FREE:
        Absent.hidden = (*ABSENT, "torch")
    report = compare(model_path, golden_path, device)
    report["smuggled"] = sorted(name for name in Absent.hidden if name in sys.modules)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
