"""Load a file that guie-export wrote and run it: pictures in, unit vectors out. Needs nothing of guie.

    vectors = load("model.pt")(pictures)      # (B,3,H,W) uint8 or float 0..255 -> (B,D) float32

Standard library and numpy, and what the file's format runs in: torch (.pt, .pt2), onnxruntime (.onnx) or
openvino (.xml). Every bundle holds a copy of this file; guie's own verification runs it.
"""

import json
import os
import warnings
import zipfile

import numpy as np


def kind(path):
    """Return the format of a file by its content (a key of LOADERS); ValueError where it is none of them."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"PK"):
        return torch_kind(path)
    if start.startswith(b"\x08"):  # the first field of ONNX's message, its version
        return "onnx"
    if start.startswith(b"<?xml"):
        return "openvino"
    raise ValueError(f"{path} is no file that guie-export writes")


def torch_kind(path):
    """Return which of torch's two formats an archive has."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        inside = next((name for name in names if name.endswith("/guie.json")), None)
        return json.loads(archive.read(inside))["format"] if inside else "torchscript"


def load(path, device="cpu"):
    """Return the function from pictures (B,3,H,W), uint8 or float 0..255, to unit vectors (B,D) float32."""
    path = os.fspath(path)
    return LOADERS[kind(path)](path, device)


def load_torchscript(path, device):
    """Run TorchScript with torch."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and asked for
        model = torch.jit.load(path, map_location=device)
    return through_torch(model, device)


def through_torch(model, device):
    """Return `model` as a function of numpy arrays."""
    import torch

    def run(images):
        with torch.inference_mode():
            found = model(torch.from_numpy(np.ascontiguousarray(images)).to(device))
        if found.dtype != torch.float32:
            raise TypeError(f"the file gave {found.dtype}; accepted: float32")
        return found.cpu().numpy()

    return run


LOADERS = {"torchscript": load_torchscript}
