"""Which rows make the batch of a step: pure functions of (seed, step), the same for any number of ranks.

A sampler has `steps_per_epoch`, `batch_size` (global) and `batch(step) -> rows (batch_size,) int64`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from guie.data.draws import permutation, uniforms
from guie.errors import UserError


class Sampler(Protocol):
    """What the loader asks of a sampler."""

    batch_size: int
    steps_per_epoch: int

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of the global batch, (batch_size,) int64."""
        ...


class Shuffled:
    """Every row once per epoch in a new order; the rows that do not fill a last batch wait for another epoch.

    With fewer rows than a batch holds the order is repeated within the batch. `views`: each row stands
    so many times in its batch, side by side, each time augmented anew: for losses that compare pictures.

    Raises:
        UserError: `views` does not divide the batch.

    """

    def __init__(
        self, views: int = 1, *, labels: np.ndarray, domains: np.ndarray, batch_size: int, seed: int
    ):
        _positive(batch_size, labels)
        if views < 1 or batch_size % views:
            raise UserError(f"sampler.views: {views} in a batch of {batch_size}; accepted: a divisor of it")
        self.num_rows, self.batch_size, self.seed, self.views = len(labels), batch_size, seed, views
        self.steps_per_epoch = max(1, len(labels) * views // batch_size)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of the global batch, (batch_size,) int64."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:  # only a memory of the last answer: the order is a function of the epoch
            order = _order(self.seed, epoch, self.num_rows)
            order = np.repeat(order, self.views) if self.views > 1 else order
            if len(order) < self.batch_size:
                order = np.resize(order, self.batch_size)
            self._epoch, self._order = epoch, order
        return self._order[place * self.batch_size : (place + 1) * self.batch_size].astype(np.int64)


class PerClass:
    """P classes x K images, a class's K images side by side (the batch of metric learning).

    `power` 0: classes go round, each once before any comes again, no class twice in a batch; so over any
    stretch every class is visited as often as any other, give or take one (with fewer than 3P classes the
    remainder of a round is left out, another one each time). Above 0 a class is drawn by its number of images
    to that power: 1 as the pictures are, 0.5 tempered. A class's images go round in the same way; with
    fewer than K it repeats them. `views`: each image stands so many times in its batch, augmented anew (then
    P x K x views). An epoch is as many steps as there are rows to fill, views counted. With fewer classes
    than P the next larger K that fits is taken.

    Raises:
        UserError: K times views does not divide the batch.

    """

    def __init__(
        self,
        k: int = 4,
        power: float = 0.0,
        views: int = 1,
        *,
        labels: np.ndarray,
        domains: np.ndarray,
        batch_size: int,
        seed: int,
    ):
        _positive(batch_size, labels)
        if k < 1 or views < 1 or batch_size % (k * views):
            raise UserError(
                f"sampler.k: {k} images per class, views {views}, in a batch of {batch_size}; "
                "accepted: k x views a divisor of it"
            )
        self.power, self.views, self.batch_size, self.seed = power, views, batch_size, seed
        self._rows, self._starts = _grouped(labels)
        self.num_classes = len(self._starts) - 1
        images = batch_size // views
        larger = range(k, images + 1)
        self.k = next(n for n in larger if images % n == 0 and images // n <= self.num_classes)
        self.classes_per_batch = images // self.k
        self.steps_per_epoch = max(1, round(len(labels) * views / batch_size))
        self._rounds: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of the global batch, (batch_size,) int64."""
        visits = self._by_size(step) if self.power else self._in_turn(step)
        rows = np.concatenate([self._images(chosen, visit) for chosen, visit in visits])
        return np.repeat(rows, self.views)

    def _in_turn(self, step: int) -> list[tuple[int, int]]:
        """Return the P (class, number of its visit) of a step."""
        size = self.classes_per_batch
        per_round = self.num_classes if self.num_classes >= 3 * size else self.num_classes // size * size
        places = [divmod(i, per_round) for i in range(step * size, (step + 1) * size)]
        # only a memory of the last answers: a round is a function of its number
        self._rounds = {
            turn: self._rounds[turn] if turn in self._rounds else self._round(turn) for turn, _ in places
        }
        return [(int(self._rounds[turn][place]), turn) for turn, place in places]

    def _round(self, turn: int) -> np.ndarray:
        """Return the classes in the order of one round.

        A batch may lie across two rounds. So that it holds no class twice, those of the round's head that
        were in the tail of the last one change places with classes of the middle. Tails are never
        touched: a round depends on the last one's first draft alone.
        """
        order, size = permutation(self.seed, turn, self.num_classes), self.classes_per_batch
        if turn == 0 or self.num_classes < 3 * size:
            return order
        tail = permutation(self.seed, turn - 1, self.num_classes)[-size:]
        clash = np.flatnonzero(np.isin(order[:size], tail))
        free = size + np.flatnonzero(~np.isin(order[size:-size], tail))[: len(clash)]
        order[clash], order[free] = order[free], order[clash]
        return order

    def _by_size(self, step: int) -> list[tuple[int, int]]:
        """Return P distinct classes with weights size^power (Gumbel top-P; Yellott 1977), visit = step."""
        draws = uniforms(self.seed, step, np.arange(self.num_classes), 1)[:, 0]
        keys = self.power * np.log(np.diff(self._starts)) - np.log(-np.log(np.clip(draws, 1e-300, 1 - 1e-16)))
        return [(int(chosen), step) for chosen in np.argsort(-keys)[: self.classes_per_batch]]

    def _images(self, chosen: int, visit: int) -> np.ndarray:
        rows = self._rows[self._starts[chosen] : self._starts[chosen + 1]]
        turn, place = divmod(visit, max(1, len(rows) // self.k))
        order = rows[np.argsort(uniforms(self.seed + 1, turn, rows, 1)[:, 0])]
        return np.resize(order, max(len(rows), self.k))[place * self.k : (place + 1) * self.k]


class DomainWeighted:
    """Batches whose domains come by weight: each has its share of every batch, give or take one row.

    `weights` gives domain -> weight (0 leaves one out); domains not named keep weight 1. Without them a
    domain's weight is its number of rows to the `power`: 1 as they are, 0 all alike, between: tempered.
    Within a domain the rows go round in a new order each time.

    Raises:
        UserError: a domain that the data does not have, a negative weight, or none above 0.

    """

    def __init__(
        self,
        weights: dict[str, float] | None = None,
        power: float = 0.5,
        *,
        labels: np.ndarray,
        domains: np.ndarray,
        domain_names: Sequence[str],
        batch_size: int,
        seed: int,
    ):
        _positive(batch_size, labels)
        self.batch_size, self.seed = batch_size, seed
        self._rounds = Rounds(domains, seed + 1)
        sizes = self._rounds.sizes
        self.shares = _shares(weights, power, sizes, list(domain_names))
        self.steps_per_epoch = max(1, len(labels) // batch_size)

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of the global batch, (batch_size,) int64, domains mixed."""
        # systematic sampling: one draw places a comb of batch_size teeth over the cumulative shares
        comb = (
            np.arange(self.batch_size) + uniforms(self.seed, step, np.zeros(1), 1)[0, 0]
        ) / self.batch_size
        edges = np.cumsum(self.shares)
        counts = np.bincount(
            np.searchsorted(edges / edges[-1], comb, side="right"), minlength=len(self.shares)
        )
        # each domain goes on from about where the steps before have come to
        firsts = (step * self.batch_size * self.shares).astype(np.int64)
        rows = np.concatenate([self._rounds.take(d, int(firsts[d]), int(n)) for d, n in enumerate(counts)])
        return rows[permutation(self.seed + 2, step, self.batch_size)]


class DomainRoundRobin:
    """Each batch from one domain, the domains in turn: every domain once, in a new order, before any again.

    Within a domain the rows go round in a new order each time; a small domain's rows so come more often than
    a large one's (the round-robin sampling of UnED; Ypsilantis et al., ICCV 2023).
    """

    def __init__(self, *, labels: np.ndarray, domains: np.ndarray, batch_size: int, seed: int):
        _positive(batch_size, labels)
        self.batch_size, self.seed = batch_size, seed
        self._rounds = Rounds(domains, seed + 1)
        self._present = np.flatnonzero(self._rounds.sizes)
        self.steps_per_epoch = max(1, len(labels) // batch_size)

    def domain(self, step: int) -> int:
        """Return the id of the domain whose step this is."""
        turn, place = divmod(step, len(self._present))
        return int(self._present[permutation(self.seed, turn, len(self._present))[place]])

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of the global batch, (batch_size,) int64."""
        first = step // len(self._present) * self.batch_size
        return self._rounds.take(self.domain(step), first, self.batch_size)


class Rounds:
    """The rows of each group in an endless order: all of them once, then all again in a new order.

    `sizes` (G,): rows per group. An order is a function of seed, group and turn; the last are remembered.
    """

    def __init__(self, groups: np.ndarray, seed: int):
        self._rows, self._starts = _grouped(groups)
        self.sizes, self.seed = np.diff(self._starts), seed
        self._orders: dict[int, dict[int, np.ndarray]] = {}

    def take(self, group: int, first: int, count: int) -> np.ndarray:
        """Return the rows at places first..first+count-1 of a group's endless order, (count,) int64."""
        size = max(1, int(self.sizes[group]))
        turns, places = np.divmod(first + np.arange(count), size)
        known = self._orders.get(group, {})
        used = {
            turn: known[turn] if turn in known else _order(self.seed, turn * 4096 + group, size)
            for turn in map(int, np.unique(turns))
        }
        if used:
            self._orders[group] = used
        picked = np.zeros(count, np.int64)
        for turn, order in used.items():
            picked[turns == turn] = order[places[turns == turn]]
        return self._rows[self._starts[group] + picked].astype(np.int64)


def rank_slots(batch_size: int, rank: int = 0, world: int = 1, accumulate: int = 1) -> np.ndarray:
    """Return the positions in the global batch of one rank's pieces, (accumulate, B) int64.

    The pieces of all ranks make up the same global batch for every world size and accumulation; each
    is a stretch, so that a class's K neighbours stay together where K divides the piece.

    Raises:
        UserError: the batch does not divide.

    """
    if batch_size % (world * accumulate):
        raise UserError(
            f"trainer.batch_size: {batch_size} over {world} ranks x {accumulate} accumulated pieces; "
            f"accepted: a multiple of {world * accumulate}"
        )
    return np.arange(batch_size, dtype=np.int64).reshape(accumulate, world, -1)[:, rank]


def oriented(ids: np.ndarray, orientations: int) -> np.ndarray:
    """Return class ids (N * orientations,): row i * orientations + o is picture i in orientation o."""
    return (np.asarray(ids)[:, None] * orientations + np.arange(orientations)).reshape(-1)


def _shares(
    weights: dict[str, float] | None, power: float, sizes: np.ndarray, names: list[str]
) -> np.ndarray:
    if weights is None:
        raw = sizes.astype(float) ** power
    else:
        for domain, weight in weights.items():
            if domain not in names:
                raise UserError(f"sampler.weights: unknown domain {domain!r}; accepted: {', '.join(names)}")
            if weight < 0:
                raise UserError(f"sampler.weights.{domain}: {weight}; accepted: 0 or more")
        raw = np.array([weights.get(name, 1.0) for name in names], float)
    if raw.sum() <= 0:
        raise UserError("sampler.weights: all are 0; accepted: at least one above 0")
    return raw / raw.sum()


def _positive(batch_size: int, labels: np.ndarray) -> None:
    if batch_size < 1:
        raise UserError(f"trainer.batch_size: {batch_size}; accepted: 1 or more")
    if len(labels) == 0:
        raise UserError("sampler: no rows to train on; accepted: a data set with split=train rows")


def _order(seed: int, turn: int, size: int) -> np.ndarray:
    """Return a permutation in 4 bytes a row where they do: every worker holds one of its own."""
    return permutation(seed, turn, size, np.int32 if size < 2**31 else np.int64)


def _grouped(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (N,) sorted by id and the starts (C+1,) of each id's stretch."""
    rows = np.argsort(ids, kind="stable").astype(np.int64)
    return rows, np.concatenate([[0], np.cumsum(np.bincount(ids))]).astype(np.int64)
