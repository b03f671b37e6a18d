"""Is a bundle what was exported? Its files by their sha256, its decoder by pixels, its models by vectors.

Standard library and numpy, and what the models run in; every bundle holds a copy of this file.
"""

import hashlib
import importlib.util
import json
import os

MANIFEST = "manifest.json"
FORMAT = 1
# Decoders of JPEG may round differently; what is read by another rule differs by far more.
PIXEL_LEVELS = 2


def sealed(manifest):
    """Return a manifest as it is written: in one form, with its own sha256; every changed byte shows."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    whole = {**rest, "sha256": hashlib.sha256(canonical(rest)).hexdigest()}
    return canonical(whole)


def canonical(value):
    """Return JSON in its one form."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(folder):
    """Return the manifest of a bundle; ValueError where it is none, or not as it was written.

    What it names lies in the folder, and a model's files are among those that are listed.
    """
    try:
        with open(os.path.join(folder, MANIFEST), "rb") as file:
            data = file.read()
        manifest = json.loads(data)
        same = data == sealed(manifest) and manifest["format"] == FORMAT
        files = dict(manifest["files"]).keys()
        used = [name for model in manifest["models"] for name in (model["file"], model["golden"])]
        strange = [name for name in files if os.path.basename(name) != name]
        strange += [name for name in used if name not in files]
    except OSError as error:
        raise ValueError(f"{MANIFEST}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST}: changed, no bundle's") from error
    if not same:
        raise ValueError(f"{MANIFEST}: changed, or of another version")
    if strange:
        raise ValueError(f"{MANIFEST}: names {strange[0]}, which is outside of the bundle")
    return manifest


def sha256_of(path):
    """Return the sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def changed(folder, files):
    """Return a line for each file that is missing, not the one that was written, or not listed."""
    present = set(os.listdir(folder)) - {MANIFEST}
    problems = [f"{name}: missing" for name in sorted(set(files) - present)]
    for name in sorted(present - set(files)):
        problems.append(f"{name}: not in {MANIFEST}")
    for name in sorted(present & set(files)):
        path, stated = os.path.join(folder, name), files[name]
        if os.path.isdir(path) or os.path.getsize(path) != stated["bytes"]:
            problems.append(f"{name}: changed (not the {stated['bytes']:,} bytes that were written)")
        elif (found := sha256_of(path)) != stated["sha256"]:
            problems.append(f"{name}: changed (sha256 {found[:12]}, written {stated['sha256'][:12]})")
    return problems


def decoding(folder, beside):
    """Return what decoding the odd pictures gives here, and a problem for each that is read otherwise."""
    import numpy as np

    images, worst, problems = beside("images"), 0, []
    with np.load(os.path.join(folder, "decoding.npz")) as kept:
        background = tuple(kept["background"].tolist())
        names = sorted(name[5:] for name in kept.files if name.startswith("file_"))
        for name in names:
            try:
                found = images.decode(kept[f"file_{name}"].tobytes(), background=background)
            except images.BadImage as error:
                problems.append(f"decoding of {name}: {error}")
                continue
            levels = apart(found, kept[f"pixels_{name}"])
            worst = max(worst, levels)
            if levels > PIXEL_LEVELS:
                problems.append(f"decoding of {name}: {levels} levels off; accepted: at most {PIXEL_LEVELS}")
    return [f"decoding: {len(names)} odd pictures, largest difference {worst} levels"], problems


def apart(found, expected):
    """Return the largest difference of two pictures in levels; 255 where they have different sizes."""
    return int(abs(found.astype(int) - expected).max()) if found.shape == expected.shape else 255


def ran(folder, model, beside, device):
    """Return what a model gives for the golden pairs here, and a problem where it is not what they state."""
    name, allowed = model["file"], model["tolerance"]
    golden = os.path.join(folder, model["golden"])
    try:
        found = beside("fresh").compare(os.path.join(folder, name), golden, device)
    except Exception as error:  # what an engine raises of a file that it cannot run is its own
        reason = (str(error).splitlines() or [""])[0]
        return [], [f"{name}: does not run ({type(error).__name__}: {reason})"]
    if found["faults"]:
        return [], [f"{name}: {found['faults'][0]}"]
    told = f"{name}: largest difference {found['difference']:.1e}, least cosine {found['cosine']:.6f}"
    # Written so that what is not a number fails.
    near = allowed["largest"] is None or found["difference"] <= allowed["largest"]
    along = allowed["cosine"] is None or found["cosine"] >= allowed["cosine"]
    if near and along:
        return [told], []
    stated = ", ".join(f"{key} {value}" for key, value in allowed.items() if value is not None)
    return [], [f"{told}; accepted: {stated}"]


def runnable(models):
    """Return the models whose engine is installed, a line for each other, and a problem where none is."""
    here = [model for model in models if importlib.util.find_spec(model["engine"]) is not None]
    rest = [model for model in models if model not in here]
    lines = [f"{model['file']}: not run, {model['engine']} is not installed" for model in rest]
    problems = [] if here else ["no model can be run here; accepted: pip install -r requirements.txt"]
    return here, lines, problems


def verify(folder, beside, device="cpu", run=True):
    """Return (lines, problems): what was found, and what is not as it was exported.

    `beside` gives the module of a name (images, fresh). With `run` false the models stay where they are.
    Nothing is decoded or run of a folder whose files have changed.
    """
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return [], [str(error)]
    whole = sha256_of(os.path.join(folder, MANIFEST))
    lines = [f"{len(manifest['files'])} files; sha256 of {MANIFEST}: {whole}"]
    if problems := changed(folder, manifest["files"]):
        return lines, problems
    here, absent, problems = runnable(manifest["models"]) if run else ([], [], [])
    checks = [decoding(folder, beside), *(ran(folder, model, beside, device) for model in here)]
    lines += absent + [line for told, _ in checks for line in told]
    return lines, problems + [problem for _, wrong in checks for problem in wrong]
