"""What one step tells: gradients by part, and too little memory."""

import math

import pytest
import torch
from tiny import batches, settings, task, train

from guie.errors import UserError
from guie.train.distributed import Hardware, World
from guie.train.engine import Engine
from guie.train.task import Run


def test_gradient_norms_of_the_parts_make_up_the_whole():
    made = task(dtype=torch.float64)
    engine = Engine(made, settings(), Hardware(), World(), Run())
    batch = next(batches()(0, 1))
    engine.gradients(batch)
    parts = {"backbone": made.embedder.backbone, "neck": made.embedder.neck, "head": made.head}
    expected = {
        part: math.sqrt(sum(float(g) ** 2 for p in module.parameters() for g in p.grad.flatten()))
        for part, module in parts.items()
    }
    norms = engine.update(batch)
    assert {name: float(norms[f"grad_norm/{name}"]) for name in parts} == pytest.approx(expected, rel=1e-12)
    assert float(norms["grad_norm"]) == pytest.approx(math.hypot(*expected.values()), rel=1e-12)


def test_a_part_without_gradient_has_no_norm():
    engine = Engine(task(), settings(freeze_backbone=True), Hardware(), World(), Run())
    engine.advance(next(batches()(0, 1)))
    assert {name for name in engine.window if name.startswith("grad_norm/")} == {
        "grad_norm/neck",
        "grad_norm/head",
    }


ADVICE = r"lower trainer\.batch_size \(128\), raise trainer\.accumulate \(1\), lower backbone\.image_px"


def failing(error):
    def between(start, stop):
        yield from batches()(start, 1)

    made = task(batches=between)

    def fail(module, given):
        raise error

    made.embedder.register_forward_pre_hook(fail)
    return made


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."),
            r"training: out of memory at step 1 \(a piece of 2\.50 GiB was asked for\); ",
        ),
        (MemoryError(), "training: out of memory at step 1; "),
    ],
)
def test_too_little_memory_says_what_to_lower(error, said):
    with pytest.raises(UserError, match=said + ADVICE):
        train(failing(error), settings())


def test_too_little_memory_of_the_cpu_is_recognised_by_torchs_own_error():
    made = task()
    made.embedder.register_forward_pre_hook(lambda module, given: torch.empty(1 << 55))
    with pytest.raises(UserError, match=r"out of memory at step 1 \(a piece of \d+ bytes was asked for\)"):
        train(made, settings())


def test_another_error_is_left_as_it_is():
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(failing(RuntimeError("size mismatch")), settings())
