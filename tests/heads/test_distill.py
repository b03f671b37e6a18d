"""Distillation against loops, and a teacher that is nowhere but in the loss."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from head_cases import batch_of, equal_with_gradients, output_of, random_case
from torch import nn
from torch.nn.functional import normalize

from guie import assembly, checkpoint
from guie.build import build
from guie.config.compose import composed
from guie.errors import UserError
from guie.heads.distill import EmbeddingDistillation, FeatureDistillation, SimilarityDistillation
from guie.heads.teacher import Teacher, on_grid
from guie.models.embedder import Embedder
from guie.models.necks import Linear
from guie.models.pooling import Average
from guie.train.model import load_weights
from guie.types import Preprocess

MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.2)


class Seeing(nn.Module):
    """A teacher of 8 x 8 pictures in patches of 4 x 4, which keeps what it was given."""

    def __init__(self, shape="vector", out_dim=5):
        super().__init__()
        torch.manual_seed(1)
        self.preprocess = Preprocess(size_px=(8, 8), mean=MEAN, std=STD)
        self.out_dim, self.shape, self.prefix_tokens = out_dim, shape, int(shape == "tokens")
        self.patch = nn.Conv2d(3, out_dim, 4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.seen = x
        found = self.drop(self.patch(x))
        if self.shape == "map":
            return found
        tokens = found.flatten(2).transpose(1, 2)
        if self.shape == "tokens":
            return torch.cat([tokens.mean(1, keepdim=True) + 1, tokens], 1)
        return tokens.mean(1)


def pictures(count, side=8):
    random = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, side, side), generator=random, dtype=torch.uint8)


def case(count=6, width=5, side=8):
    raw, labels = random_case(count, 3, width)
    return raw, batch_of(labels, images=pictures(count, side))


@pytest.mark.parametrize("of", ["z", "raw", "feature"])
@pytest.mark.parametrize("distance", ["cosine", "l2", "smooth_l1"])
@pytest.mark.parametrize("width", [5, 7])
def test_embedding_distillation_equals_a_loop(of, distance, width):
    teacher = Seeing().double()
    head = EmbeddingDistillation(teacher, of, distance, 0.3, embed_dim=width, feature_dim=width).double()
    raw, batch = case(width=width)
    assert isinstance(head.project, nn.Identity if width == 5 else nn.Linear)
    target = Teacher(teacher).vectors(batch)
    losses = []
    for i in range(len(raw)):
        own = head.project(normalize(raw, dim=1)[i] if of == "z" else raw[i])
        other = target[i]
        cosine = own @ other / (own.norm() * other.norm())
        if of == "z":
            own, other = own / own.norm(), other / other.norm()
        apart = (own - other).abs()
        smooth = torch.where(apart < 0.3, apart**2 / 0.6, apart - 0.15).mean()
        losses.append({"cosine": 1 - cosine, "l2": (apart**2).sum(), "smooth_l1": smooth}[distance])
    loss = head(output_of(raw), batch).total
    equal_with_gradients(loss, sum(losses) / len(losses), raw, *head.parameters())
    assert torch.autograd.gradcheck(lambda x: head(output_of(x), batch).total, raw)


def test_similarity_distillation_equals_a_double_loop():
    teacher = Seeing().double()
    head = SimilarityDistillation(teacher)
    raw, batch = case(width=4)
    own, theirs = normalize(raw, dim=1), normalize(Teacher(teacher).vectors(batch), dim=1)
    expected = sum((own[i] @ own[j] - theirs[i] @ theirs[j]) ** 2 for i in range(6) for j in range(6)) / 36
    equal_with_gradients(head(output_of(raw), batch).total, expected, raw)
    assert torch.autograd.gradcheck(lambda x: head(output_of(x), batch).total, raw)


@pytest.mark.parametrize("shape", ["tokens", "map"])
def test_feature_distillation_equals_a_loop_over_places(shape):
    """The student's 2 x 2 grid is the teacher's, so that nothing is resized."""
    teacher = Seeing(shape).double()
    head = FeatureDistillation(teacher, beta=0.7, feature_dim=4).double()
    raw, batch = case(3)
    tokens = torch.randn(3, 1 + 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens.requires_grad_()
    target = Teacher(teacher).patches(batch)
    expected, mix, project = 0, head.mix, head.project
    for b, y, x in np.ndindex(3, 2, 2):
        mixed = []
        for f in range(4):
            around = [
                tokens[b, 1 + 2 * (y + dy) + x + dx, f] * mix.weight[f, 0, 1 + dy, 1 + dx]
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
                if 0 <= y + dy < 2 and 0 <= x + dx < 2
            ]
            mixed.append(sum(around) + mix.bias[f])
        own = project.weight[:, :, 0, 0] @ torch.stack(mixed) + project.bias
        seen = target[b, :, y, x]
        apart = (own - (seen - seen.mean()) / torch.sqrt(seen.var(correction=0) + 1e-5)).abs()
        expected = expected + torch.where(apart < 0.7, apart**2 / 1.4, apart - 0.35).mean() / 12
    loss = head(output_of(raw, tokens), batch).total
    equal_with_gradients(loss, expected, tokens, *head.parameters())


def test_a_student_of_another_grid_and_picture_size_is_resized():
    raw, batch = case(2, side=12)
    head = FeatureDistillation(Seeing("map"), feature_dim=4)
    tokens = torch.randn(2, 9, 4).requires_grad_()
    loss = head(output_of(raw, tokens), batch).total
    as_map = tokens.transpose(1, 2).unflatten(2, (3, 3))
    assert loss == head(output_of(raw, as_map), batch).total
    loss.backward()
    assert all(p.grad.isfinite().all() for p in (tokens, *head.parameters()))


def test_the_teacher_is_in_no_list_of_modules_weights_or_states_and_does_not_change():
    teacher = Seeing()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    head = EmbeddingDistillation(teacher, embed_dim=6, feature_dim=6).train()
    assert {name for name, _ in head.named_parameters()} == {"project.weight", "project.bias"}
    assert set(head.state_dict()) == {"project.weight", "project.bias"}
    assert not any(isinstance(module, Seeing) for module in head.modules())
    raw, batch = case(width=6)
    losses = [head(output_of(raw.float()), batch).total for _ in range(2)]
    assert losses[0] == losses[1]  # its dropout is off
    losses[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("side", [8, 5, 20])
def test_the_teacher_sees_its_own_size_and_its_own_normalisation(dtype, side):
    teacher = Seeing()
    flat = torch.full((2, 3, side, side), 100).to(dtype)
    Teacher(teacher).vectors(batch_of(torch.zeros(2, dtype=torch.int64), images=flat))
    for channel in range(3):
        expected = torch.full((2, 8, 8), (100 / 255 - MEAN[channel]) / STD[channel])
        torch.testing.assert_close(teacher.seen[:, channel], expected, rtol=1e-4, atol=1e-4)


def test_what_a_backbone_says_of_a_picture_is_its_class_token_or_its_mean():
    _, batch = case()
    for shape in ("vector", "tokens", "map"):
        teacher = Teacher(Seeing(shape))
        found = teacher.network(teacher._normalised(batch.images))
        expected = found[:, 0] if shape == "tokens" else found.mean((2, 3)) if shape == "map" else found
        torch.testing.assert_close(teacher.vectors(batch), expected)


def test_bf16_teachers_answer_in_float32():
    _, batch = case()
    exact, rounded = (Teacher(Seeing(), kind).vectors(batch) for kind in ("fp32", "bf16"))
    assert rounded.dtype is torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("count", "size", "prefix", "grid"),
    [
        (197, (224, 224), 1, (14, 14)),
        (261, (224, 224), 5, (16, 16)),
        (49, (7, 7), 0, (7, 7)),
        (9, (32, 16), 1, (4, 2)),
    ],
)
def test_tokens_find_their_grid(count, size, prefix, grid):
    tokens = torch.arange(count).float()[None, :, None]
    found = on_grid(tokens, size)
    assert found.shape == (1, 1, *grid)
    assert torch.equal(found.flatten(), tokens.flatten()[prefix:])


def test_what_cannot_be_is_named():
    raw, batch = case()
    head = EmbeddingDistillation(Seeing(), embed_dim=5, feature_dim=5)
    cached = batch_of(batch.labels, images=torch.zeros(6, 16))
    with pytest.raises(
        UserError, match=r"head\.teacher: the batch holds cached features.*cache_features=false"
    ):
        head(output_of(raw), cached)
    with pytest.raises(
        UserError, match=r"head\.teacher: str received; accepted: a backbone or a trained run"
    ):
        EmbeddingDistillation("clip", embed_dim=5, feature_dim=5)
    with pytest.raises(UserError, match=r"head\.teacher: it gives no patch tokens"):
        FeatureDistillation(Seeing("vector"), feature_dim=4)(output_of(raw), batch)
    with pytest.raises(UserError, match=r"the student gives no tokens"):
        FeatureDistillation(Seeing("map"), feature_dim=4)(output_of(raw), batch)
    with pytest.raises(UserError, match=r"head: 5 tokens of pictures of 300 x 200"):
        on_grid(torch.zeros(1, 5, 2), (300, 200))
    for wrong in ({"of": "tokens"}, {"distance": "kl"}, {"beta": 0}, {"precision": "fp8"}):
        with pytest.raises(UserError, match=rf"head\.{next(iter(wrong))}: .* received; accepted"):
            EmbeddingDistillation(Seeing(), **wrong, embed_dim=5, feature_dim=5)


FACTS = {
    "num_classes": 3,
    "embed_dim": 16,
    "feature_dim": 8,
    "class_counts": np.array([2, 2, 2]),
    "class_domains": np.zeros(3, np.int64),
    "domain_names": ["one"],
}


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """Return the folder of a checkpoint of an untrained small network, and that network."""
    cfg = composed("train", ["backbone=small", "backbone.image_px=32"])
    embedder = assembly.embedder(cfg).eval()
    meta = {"config": cfg, "preprocess": asdict(embedder.preprocess), "space_id": "0123456789abcdef"}
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder, checkpoint.State(1, {"embedder": dict(embedder.state_dict())}, {}, meta))
    return folder, embedder


CONFIGS = [
    ["head=distill_embedding", "backbone@head.teacher=small"],
    ["head=distill_similarity", "backbone@head.teacher=small"],
    ["head=distill_feature", "backbone@head.teacher=small"],
    ["head=distill_run", "head.teacher.path=RUN"],
    ["head=arcface_distill", "backbone@head.heads.distill.teacher=small"],
]


@pytest.mark.parametrize("overrides", CONFIGS, ids=lambda overrides: overrides[0])
def test_every_config_is_built_and_its_loss_falls(overrides, trained_run):
    node = composed("train", [word.replace("RUN", str(trained_run[0])) for word in overrides])["head"]
    torch.manual_seed(0)
    head = build(node, where="head", **FACTS)
    raw, batch = case(6, 16, side=32)
    raw, tokens = raw.detach().float().requires_grad_(), torch.randn(6, 17, 8).requires_grad_()
    optimizer = torch.optim.Adam([raw, tokens, *head.parameters()], lr=0.05)
    losses = []
    for _ in range(3):
        loss = head(output_of(raw, tokens), batch).total
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[0]


def test_a_trained_run_teaches_what_it_embeds(trained_run):
    folder, embedder = trained_run
    assert isinstance(embedder, Embedder)
    teacher = Teacher(assembly.trained_embedder(folder))
    _, batch = case(2, side=32)
    torch.testing.assert_close(teacher.vectors(batch), embedder(batch.images).raw.detach())
    assert teacher.vector_dim == embedder.embed_dim
    assert teacher.patches(batch).shape[:2] == (2, embedder.backbone.out_dim)


def test_a_head_remembers_its_teacher_and_takes_no_state_of_another_s(trained_run):
    found, meta = assembly.trained_embedder(trained_run[0])
    head, same = (SimilarityDistillation((found, meta)) for _ in range(2))
    load_weights(same, head.state_dict(), "head")
    assert list(head.state_dict()) == ["taught._extra_state"] and not list(head.parameters())
    other = SimilarityDistillation((found, {**meta, "space_id": "f" * 16}))
    place = rf"head\.teacher\.path: {trained_run[0]}/step_000001"
    said = rf"{place} has space id f{{16}}, this run was taught by 0123456789abcdef; "
    with pytest.raises(
        UserError, match=said + r"accepted: the checkpoint of that space id \(step_\*\), or a new"
    ):
        load_weights(other, head.state_dict(), "head")


def test_a_teacher_that_keeps_a_prefix_or_reads_side_inputs_teaches_what_it_embeds():
    torch.manual_seed(0)
    network = Embedder(Seeing(), Average(), Linear(4, keep=2, in_dim=5 + 3), side=True)
    teacher = Teacher(network)
    images, side = pictures(3), torch.rand(3, 3)
    batch = batch_of(torch.arange(3))
    batch.images, batch.side = images, side
    assert teacher.vector_dim == 2
    vectors = normalize(teacher.vectors(batch), dim=1)
    torch.testing.assert_close(vectors, network(images, side).z)
    batch.side = None
    with pytest.raises(UserError, match=r"head.teacher: it reads side inputs; accepted: side_inputs=true"):
        teacher.vectors(batch)
