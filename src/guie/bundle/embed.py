"""Pictures to unit vectors with a model of this folder. Needs nothing of guie.

    python embed.py a.jpg b.png                    CSV on standard output: a line for each picture
    python embed.py a.jpg b.png --out vectors.npy  (N,D) float32, a row for each picture as named; or .csv
    python embed.py --verify                       is this folder what was exported, and does it run here?

From Python: `Embedder = runpy.run_path("FOLDER/embed.py")["Embedder"]`, then `Embedder().read("a.jpg")`.

It reads pictures by the rules of images.py and runs a model with runtime.py; what to install stands in
requirements.txt. Leaves nothing in the folder.
"""

import argparse
import csv
import importlib.util
import json
import os
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))
WRONG = "wrong: "  # in front of what the check of the folder found


def beside(name):
    """Return the module of this name beside this file, from its source: no cache is left or read."""
    path = os.path.join(HERE, f"{name}.py")
    module = types.ModuleType(name)
    module.__file__ = path
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), module.__dict__)
    return module


def read_json(folder, name):
    """Return what a JSON file of the folder holds."""
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


class Embedder:
    """A model of the bundle `folder`: by its file name, or the first that can run here.

    `name` is its file, `dim` the length of a vector; ValueError or ImportError where none can be used.
    """

    def __init__(self, folder=HERE, model=None, device="cpu"):
        self.told = read_json(folder, "preprocess.json")
        self.name = self.chosen(beside("check").read_manifest(folder)["models"], model)
        self.dim = self.told["embed_dim"]
        self.images = beside("images")
        self.run = beside("runtime").load(os.path.join(folder, self.name), device)

    @staticmethod
    def chosen(models, wanted):
        """Return the file of the model to use."""
        asked = [model for model in models if wanted in (None, model["file"])]
        if not asked:
            raise ValueError(f"model: {wanted}; accepted: {', '.join(model['file'] for model in models)}")
        for model in asked:
            if importlib.util.find_spec(model["engine"]) is not None:
                return model["file"]
        engines = " or ".join(sorted({model["engine"] for model in asked}))
        raise ImportError(f"{engines} is not installed; pip install -r requirements.txt")

    def pixels(self, data):
        """Return the bytes of a picture as (1,3,H,W) uint8 RGB; raises images.BadImage (see images.py)."""
        image = self.images.decode(data, background=tuple(self.told["preprocess"]["background"]))
        size = self.told["size_px"]
        if size is not None and list(image.shape[:2]) != size:
            shown = f"{image.shape[0]} x {image.shape[1]} px"
            raise self.images.BadImage(
                f"{shown} (height, width); accepted by this model: {size[0]} x {size[1]}"
            )
        return image.transpose(2, 0, 1)[None]

    def vector(self, data):
        """Return the unit vector (D,) float32 of the bytes of a picture."""
        return self.run(self.pixels(data).repeat(self.told["batch"] or 1, axis=0))[0]

    def read(self, path):
        """Return the unit vector (D,) float32 of a picture's file."""
        with open(path, "rb") as file:
            return self.vector(file.read())

    def vectors(self, paths):
        """Return (N,D) float32, NaN where a picture is bad, and the reasons by path."""
        import numpy as np

        found, bad = np.full((len(paths), self.dim), np.nan, np.float32), {}
        for row, path in enumerate(paths):
            try:
                found[row] = self.read(path)
            except (self.images.BadImage, OSError) as error:
                bad[path] = str(error)
        return found, bad


def write(out, paths, vectors):
    """Write vectors as .npy, or as CSV (file, then the numbers) into a file or on standard output."""
    if out and out.endswith(".npy"):
        import numpy as np

        np.save(out, vectors)
        return
    lines = ([path, *map(repr, row)] for path, row in zip(paths, vectors.tolist(), strict=True))
    if out is None:
        csv.writer(sys.stdout).writerows(lines)
        return
    with open(out, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def embed(arguments):
    """Embed the pictures named; return the exit code, 1 where one of them is bad."""
    if arguments.out and not arguments.out.endswith((".npy", ".csv")):
        raise ValueError(f"out: {arguments.out}; accepted: a name that ends in .npy or .csv")
    model = Embedder(arguments.folder, arguments.model, arguments.device)
    vectors, bad = model.vectors(arguments.pictures)
    write(arguments.out, arguments.pictures, vectors)
    for path, reason in bad.items():
        print(f"{path}: {reason}; its row is nan", file=sys.stderr)
    return 1 if bad else 0


def verify(arguments):
    """Check the folder; return the exit code, 1 where something is not as it was exported."""
    lines, problems = beside("check").verify(arguments.folder, beside, arguments.device, not arguments.files)
    print("\n".join(lines + [WRONG + problem for problem in problems]))
    print(f"{arguments.folder}: {'NOT ' if problems else ''}as it was exported")
    return 1 if problems else 0


def parsed(arguments):
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", metavar="PICTURE")
    parser.add_argument("--out", help="a file that ends in .npy or .csv")
    parser.add_argument("--model", help="one of the folder's model files; the first that runs here")
    parser.add_argument("--device", default="cpu", help="cpu, or what torch calls it (cuda)")
    parser.add_argument("--verify", action="store_true", help="check this folder instead")
    parser.add_argument("--files", action="store_true", help="with --verify: do not run the models")
    parser.add_argument("--folder", default=HERE, help="another bundle, read by the rules of this one")
    found = parser.parse_args(arguments)
    if bool(found.pictures) == found.verify:
        parser.error("accepted: pictures, or --verify")
    return found


def main(arguments=None):
    """Embed pictures, or verify the folder; return the exit code."""
    sys.dont_write_bytecode = True
    found = parsed(arguments)
    try:
        return verify(found) if found.verify else embed(found)
    except (ImportError, OSError, ValueError) as error:
        print(f"embed.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
