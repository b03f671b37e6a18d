"""Load a file that guie-export wrote and run it: pictures in, unit vectors out. Needs nothing of guie.

    vectors = load("model.pt")(pictures)      # (B,3,H,W) uint8 or float 0..255 -> (B,D) float32

Standard library and numpy, and what the file's format runs in: torch (.pt, .pt2), onnxruntime (.onnx) or
openvino (.xml). Every bundle holds a copy of this file; guie's own verification runs it.
"""

import json
import os
import sys
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
    return torch_facts(path).get("format", "torchscript")


def torch_facts(path):
    """Return what guie-export wrote into one of torch's archives."""
    with zipfile.ZipFile(path) as archive:
        inside = next((name for name in archive.namelist() if name.endswith("/guie.json")), None)
        return json.loads(archive.read(inside)) if inside else {}


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


def load_pt2(path, device):
    """Run torch.export's program, or of two the one for the pictures' shape, with torch."""
    from torch.export.passes import move_to_device_pass
    from torch.export.pt2_archive import _package

    programs = _package.load_pt2(path).exported_programs
    if device != "cpu":
        programs = {name: move_to_device_pass(program, device) for name, program in programs.items()}
    models = {name: program.module() for name, program in programs.items()}

    def model(images):
        shape = "square" if images.shape[2] == images.shape[3] else "other"
        return models["model" if "model" in models else shape](images)

    run, uint8 = through_torch(model, device), torch_facts(path)["pixels"] == "levels"
    return lambda images: run(as_stated(images, uint8))


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


def load_onnx(path, device):
    """Run ONNX with ONNX Runtime, without torch; `device` cpu, cuda or cuda:N."""
    import onnxruntime

    kind, _, number = device.partition(":")
    provider = "CPUExecutionProvider" if kind == "cpu" else f"{kind.upper()}ExecutionProvider"
    accepted = onnxruntime.get_available_providers()
    if provider not in accepted:
        raise ValueError(f"device: {device} needs {provider}; accepted by this onnxruntime: {accepted}")
    chosen = (provider, {"device_id": number} if number else {})
    session = onnxruntime.InferenceSession(path, providers=[chosen])
    taken = session.get_inputs()[0]
    uint8 = taken.type == "tensor(uint8)"
    facts = json.loads(session.get_modelmeta().custom_metadata_map.get("guie.json", "{}"))

    def run(images):
        return session.run(None, {taken.name: as_stated(images, uint8, facts.get("most_px"))})[0]

    return run


def load_openvino(path, device):
    """Run OpenVINO, without torch; `device` as OpenVINO calls it: cpu, gpu, gpu.1."""
    # It would report its use to its makers when it is imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    # Of its own accord it computes all in what the machine is fastest in, the resize too. So it computes what
    # the file holds in bf16 in bf16, the rest in float32.
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, device.upper(), hint)
    uint8 = model.input(0).element_type == openvino.Type.u8
    facts = json.loads(model.get_rt_info("guie").value) if model.has_rt_info("guie") else {}

    def run(images):
        return compiled(as_stated(images, uint8, facts.get("most_px")))[0]

    return run


def as_stated(images, uint8, most_px=None):
    """Return pictures as a program of one dtype takes them: floats as the nearest whole levels for uint8.

    A program without branches does not reduce what is longer than `most_px` before it pads: that is refused.
    """
    images = np.ascontiguousarray(images)
    if not uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"images: {images.dtype}; accepted: float32, normalised as the network reads it")
        return images.astype(np.float32, copy=False)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: {list(images.shape)}; accepted: (B,3,H,W), RGB, 0..255")
    if most_px is not None and max(images.shape[2:]) > most_px:
        raise ValueError(f"images: {list(images.shape)}; accepted: no side above {most_px} pixels")
    if images.dtype == np.uint8:
        return images
    return np.rint(np.clip(np.nan_to_num(images.astype(np.float32)), 0, 255)).astype(np.uint8)


LOADERS = {"torchscript": load_torchscript, "pt2": load_pt2, "onnx": load_onnx, "openvino": load_openvino}
