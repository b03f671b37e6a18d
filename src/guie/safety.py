"""What makes a result doubtful: training below the frozen baseline, training data in the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from guie.errors import UserError

if TYPE_CHECKING:  # as pyarrow.compute, it costs more than what saved embeddings are evaluated in
    from guie.datasets.manifest import Manifest

# Measured before training: the backbone as it is (pretrained, or its first random weights), pooled, no neck.
FROZEN = "backbone"
LEAKAGE = ("warn", "refuse", "ignore")


METRIC = "mP@5"  # what stands for a data set whose protocol names nothing else


class Shortfall(NamedTuple):
    """A number below the frozen baseline's; `where` is merged, a data set, or <data set>/<domain>."""

    where: str
    trained: float
    frozen: float
    metric: str = METRIC


def shortfalls(
    metrics: Mapping[str, Any], floors: Mapping[str, Any], named: Mapping[str, str] | None = None
) -> list[Shortfall]:
    """Return where `metrics` (`evaluate.Evaluation.metrics`) are below those of the frozen baseline.

    `named` is the metric that stands for each data set. A domain counts on its own index, in an index of
    several data sets on the merged one. Nothing is found where `floors` have no such baseline.
    """
    baseline = floors.get(FROZEN, {})
    frozen = {where: value for where, _, value in _numbers(baseline, named or {})}
    trained = _numbers(metrics, named or {})
    return [Shortfall(k, v, frozen[k], name) for k, name, v in trained if k in frozen and v < frozen[k]]


def _numbers(metrics: Mapping[str, Any], named: Mapping[str, str]) -> Iterator[tuple[str, str, float]]:
    """Yield (where, metric, value); of a single data set, which is what is merged, only the domains."""
    sets = {name: part for name, part in metrics.items() if name != "merged"}
    only = next(iter(sets)) if len(sets) == 1 else ""
    merged = named.get(only, METRIC)
    if merged in metrics.get("merged", {}):
        yield "merged", merged, metrics["merged"][merged]
    for name, part in sets.items():
        metric = named.get(name, METRIC)
        if not only and metric in part:
            yield name, metric, part[metric]
        domains = part.get("domains", {})
        for domain, entry in domains.items() if len(domains) > 1 else ():
            value = entry.get(metric, entry["merged"].get(metric))
            if value is not None:
                yield f"{name}/{domain}", metric, value


def told(found: Sequence[Shortfall], most: int = 4) -> str:
    """Return one line that names the places, those first that lost most."""
    metric = ", ".join(dict.fromkeys(one.metric for one in found))
    worst = sorted(found, key=lambda one: one.trained - one.frozen)[:most]
    shown = ", ".join(f"{one.where} {one.trained:.3f} (frozen {one.frozen:.3f})" for one in worst)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return f"{metric} below the frozen backbone: {shown}{more}"


class Leak(NamedTuple):
    """What evaluation shares with training: `kind` classes, pictures (by place) or bytes (by sha256)."""

    kind: str
    source: str
    target: str
    num: int
    total: int
    examples: list[str]

    def __str__(self) -> str:
        """Return the line to tell."""
        what = {
            "classes": f"classes of eval_on.{self.target} are trained on, too",
            "pictures": f"pictures of eval_on.{self.target} are among those of dataset.{self.source}",
            "bytes": f"pictures of eval_on.{self.target} have the bytes of some of dataset.{self.source}",
        }[self.kind]
        return f"leakage: {self.num:,} of {self.total:,} {what} ({', '.join(self.examples)})"


def checked_leaks(trained: Mapping[str, Manifest], asked: Mapping[str, Manifest], leakage: str) -> list[str]:
    """Return a line for each leak; none where `leakage` is ignore, UserError with the first under refuse."""
    if leakage not in LEAKAGE:
        raise UserError(f"leakage: '{leakage}'; accepted: {', '.join(LEAKAGE)}")
    found = [str(leak) for leak in leaks(trained, asked)] if leakage != "ignore" else []
    if found and leakage == "refuse":
        raise UserError(f"{found[0]}; accepted under leakage=refuse: none of it, else leakage=warn")
    return found


def leaks(trained: Mapping[str, Manifest], asked: Mapping[str, Manifest]) -> list[Leak]:
    """Return what the evaluated rows `asked` share with the rows `trained` (both by data set).

    Labels count only below the same root, for elsewhere the same name may mean another thing. Protocols with
    the same classes on both sides are legitimate: the caller tells, it does not judge.
    """
    import pyarrow as pa

    found = []
    for target, theirs in asked.items():
        place = _places(theirs)
        for source, ours in trained.items():
            here, there = ours.root.resolve(), theirs.root.resolve()
            same_place = pa.array([False] * len(theirs))
            if here == there:
                found.append(_leak("classes", source, target, *_shared_labels(ours, theirs)))
            if here == there or here in there.parents or there in here.parents:
                same_place = _among(place, _places(ours))
                found.append(_leak("pictures", source, target, same_place, place))
            found.append(_leak("bytes", source, target, *_shared_bytes(ours, theirs, same_place)))
    return [leak for leak in found if leak.num]


def _leak(kind: str, source: str, target: str, shared: Any, shown: Any) -> Leak:
    """Return the leak of the values `shown` (N,) that are `shared` (N,) bool, as pyarrow arrays."""
    import pyarrow.compute as pc

    examples = [str(value).partition("\x1f")[0] for value in shown.filter(shared)[:3].to_pylist()]
    return Leak(kind, source, target, int(pc.sum(shared).as_py() or 0), len(shown), examples)


def _among(values: Any, known: Any) -> Any:
    """Return which of `values` (N,) are among `known`, (N,) bool; null is among nothing."""
    import pyarrow.compute as pc

    return pc.is_in(values, value_set=pc.unique(known).drop_null())


def _shared_labels(ours: Manifest, theirs: Manifest) -> tuple[Any, Any]:
    import pyarrow as pa

    names = pa.array(theirs.label_names, pa.string())
    return _among(names, pa.array(ours.label_names, pa.string())), names


def _places(rows: Manifest) -> Any:
    """Return the place of each row, (N,): its absolute path, then the record within."""
    import pyarrow as pa
    import pyarrow.compute as pc

    file = rows.table["file"].cast(pa.large_string())
    entry = pc.fill_null(rows.table["entry"].cast(pa.large_string()), "")
    root = pa.scalar(f"{rows.root.resolve()}/", pa.large_string())
    nothing, mark = (pa.scalar(text, pa.large_string()) for text in ("", "\x1f"))
    return pc.binary_join_element_wise(root, file, mark, entry, nothing)


def _shared_bytes(ours: Manifest, theirs: Manifest, known: Any) -> tuple[Any, Any]:
    """Return which rows have the bytes of a trained one, but for those `known` to be the same picture."""
    import pyarrow as pa
    import pyarrow.compute as pc

    place = theirs.table["file"]
    if any("sha256" not in rows.table.column_names for rows in (ours, theirs)):
        return pc.and_(known, pc.invert(known)), place
    hashes, wanted = (rows.table["sha256"].cast(pa.string()) for rows in (theirs, ours))
    return pc.and_(_among(hashes, wanted), pc.invert(known)), place
