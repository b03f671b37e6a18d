"""Run as a script, in a process of its own: does an exported file reproduce its golden pairs without guie?

`python -I -S fresh.py MODEL GOLDEN DEVICE FOLDER...`: FOLDERs are where torch and numpy live; `-S` keeps .pth
files, so editable installs, out of the path. Prints one line of JSON: `difference` (largest, absolute),
`faults` (wrong shapes or dtypes), `sizes`, `dtypes`, `batches`, `smuggled` (hidden packages that came in).
Imports nothing of guie, and refuses whoever tries.
"""

import json
import sys
import warnings

ABSENT = ("guie", "timm", "open_clip", "torchvision")


class Absent:
    """A finder that hides the packages an exported file must not need."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Refuse a name of ABSENT, leave every other to the finders behind."""
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is kept out of the verification", name=name)


def pairs(golden, torch):
    """Yield (images, expected) for each size, batch and dtype that the golden file asks for."""
    for key in sorted(name for name in golden.files if name.startswith("images_")):
        images = torch.from_numpy(golden[key])
        expected = torch.from_numpy(golden[key.replace("images_", "vectors_")])
        for position, batch in enumerate(golden["batches"].tolist()):
            yield images[:batch], expected[:batch]
            # One float batch per size: the conversion does not depend on the batch.
            if position == 0:
                yield images[:batch].float(), expected[:batch]


def compare(model_path, golden_path, device):
    """Return the report that is printed."""
    import numpy as np
    import torch

    model = torch.jit.load(model_path, map_location=device)
    worst, faults, sizes, dtypes, batches = 0.0, [], [], set(), set()
    for images, expected in pairs(np.load(golden_path), torch):
        with torch.inference_mode():
            found = model(images.to(device)).cpu()
        name = f"{tuple(images.shape)} {images.dtype}"
        if found.shape != expected.shape or found.dtype != torch.float32:
            faults.append(f"{name} gave {tuple(found.shape)} {found.dtype}")
            continue
        difference = (found - expected).abs().max().item()
        worst = difference if difference != difference or difference > worst else worst
        size = list(images.shape[2:])
        sizes += [] if size in sizes else [size]
        dtypes.add(str(images.dtype).removeprefix("torch."))
        batches.add(len(images))
    return {
        "difference": worst,
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
    warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, and asked for
    report = compare(model_path, golden_path, device)
    report["smuggled"] = sorted(name for name in ABSENT if name in sys.modules)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
