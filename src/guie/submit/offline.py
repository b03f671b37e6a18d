"""Run as a script, in a process of its own: does a submitted model run with torch alone and no network?

`python -I -S offline.py MODEL FOLDER...`: FOLDERs are where torch and numpy live. Asks the model as the
challenge does, one uint8 picture (1,3,H,W) at a time, and prints one line of JSON: for each size the shape,
dtype and length of the vector, whether it is finite, and the same when asked again.
Imports nothing of guie; whoever looks for a host is refused.
"""

import json
import sys
import warnings

ABSENT = ("guie", "timm", "open_clip", "torchvision")
SIZES = ((224, 224), (480, 640), (33, 20))


class Absent:
    """A finder that hides the packages a submitted file must not need."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Refuse a name of ABSENT, leave every other to the finders behind."""
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is kept out of the check", name=name)


def refuse(event, arguments):
    """Stop whoever opens a connection or asks for a host."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise OSError(f"the network is not reachable ({event} {arguments[:2]})")


def ask(model, torch):
    """Yield what is found for each size."""
    drawn = torch.Generator().manual_seed(0)
    for height, width in SIZES:
        picture = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=drawn)
        with torch.inference_mode():
            first, again = model(picture), model(picture)
        yield {
            "size": [height, width],
            "shape": list(first.shape),
            "dtype": str(first.dtype).removeprefix("torch."),
            "length": first.float().norm().item(),
            "finite": bool(first.isfinite().all()),
            "repeats": bool(torch.equal(first, again)),
        }


def main():
    """Load and ask."""
    model_path, *folders = sys.argv[1:]
    sys.path += folders
    sys.meta_path.insert(0, Absent)
    sys.addaudithook(refuse)
    warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, and asked for
    import torch

    model = torch.jit.load(model_path, map_location="cpu").eval()
    print(json.dumps({"torch": torch.__version__, "asked": list(ask(model, torch))}))


if __name__ == "__main__":
    main()
