"""A dataset as one table: where each picture's bytes are and what it shows, in Arrow and numpy columns."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from guie.errors import UserError
from guie.types import Row

SPLITS = ("train", "val", "test", "query", "index")
_FORMAT = "1"  # part of the cache key: raise it when the columns of the Arrow copy change
_CODED = ("label", "domain", "split")
CROP = "crop"  # a column of selections for evaluation: the box that a picture is cropped to
_ESCAPES = r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:[/\\]|^$"
_MIB = 1 << 20


class Manifest:
    """Rows (file, entry, label, domain, split) below a `root` folder; further columns are kept.

    `table` must come from `make_table`, `from_columns` or `open_manifest`, which check it. Class ids are
    positions in the sorted list of the label strings that occur, so a selection has ids 0..C-1 again.
    `truth`: the protocol's pairs where labels do not decide (`datasets.known.Listing`); selections keep them.
    """

    def __init__(self, name: str, root: str | Path, table: pa.Table, truth: pa.Table | None = None):
        self.name = name
        self.root = Path(root)
        self.table = table
        self.truth = truth

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"Manifest({self.name!r}, {len(self)} rows, {len(self.label_names)} labels, root={self.root})"

    @cached_property
    def _coded(self) -> dict[str, tuple[np.ndarray, list[str]]]:
        return {column: _compact(self.table[column]) for column in _CODED}

    @property
    def labels(self) -> np.ndarray:
        """Return class ids (N,) int64, positions in `label_names`."""
        return self._coded["label"][0]

    @property
    def label_names(self) -> list[str]:
        """Return the C label strings that occur, sorted."""
        return self._coded["label"][1]

    @property
    def num_classes(self) -> int:
        """Return C."""
        return len(self.label_names)

    @property
    def domains(self) -> np.ndarray:
        """Return domain ids (N,) int64, positions in `domain_names`."""
        return self._coded["domain"][0]

    @property
    def domain_names(self) -> list[str]:
        """Return the domain strings that occur, sorted; a data set without domains has one, ''."""
        return self._coded["domain"][1]

    @property
    def splits(self) -> np.ndarray:
        """Return the split of each row, (N,) str: train, val, test, query or index."""
        codes, names = self._coded["split"]
        return np.asarray(names, dtype=str)[codes] if names else np.empty(0, dtype=str)

    @property
    def files(self) -> np.ndarray:
        """Return the paths relative to `root`, (N,) str; makes the whole column: not for a loop."""
        return self.table["file"].to_numpy().astype(str)

    @cached_property
    def _where(self) -> tuple[pa.Array, pa.Array]:
        return _one_chunk(self.table["file"]), _one_chunk(self.table["entry"])

    @cached_property
    def _pictures(self):
        from guie.records.pictures import Pictures

        return Pictures(self.root)

    def __getstate__(self) -> dict:
        """Leave open files and made columns behind: a worker opens its own."""
        return {"name": self.name, "root": self.root, "table": self.table, "truth": self.truth}

    def place(self, i: int) -> tuple[str, str | None]:
        """Return (file, entry) of row `i`."""
        files, entries = self._where
        return files[int(i)].as_py(), entries[int(i)].as_py()

    def row(self, i: int) -> Row:
        """Return row `i` as a `Row`."""
        file, entry = self.place(i)
        label, domain, split = (self.table[column][int(i)].as_py() for column in _CODED)
        return Row(file, label, entry, domain, split)

    def read(self, i: int) -> bytes:
        """Return the picture's encoded bytes.

        Raises:
            BadImage: the file or record is missing or damaged.

        """
        return self.picture(*self.place(i))

    def picture(self, file: str, entry: str | None = None) -> bytes:
        """Return the encoded bytes of a picture by its place, below the root; raises BadImage as `read`."""
        return self._pictures.read(file, entry)

    def crop(self, i: int) -> tuple[float, float, float, float] | None:
        """Return (x, y, width, height) in pixels that row `i` is cropped to when it is used, None: whole."""
        if CROP not in self.table.column_names:
            return None
        text = self.table[CROP][int(i)].as_py()
        if not text:
            return None
        try:
            left, top, width, height = map(float, text.split(","))
        except ValueError:
            raise UserError(
                f"dataset {self.name}: row {i}: box {text!r}; accepted: x,y,width,height in pixels"
            ) from None
        return left, top, width, height

    def select(self, rows: np.ndarray | Sequence[int]) -> Manifest:
        """Return the rows of a boolean mask (N,) or of positions (M,), in the order given."""
        rows = np.asarray(rows)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        return Manifest(self.name, self.root, self.table.take(pa.array(rows, pa.int64())), self.truth)

    def split(self, *names: str) -> Manifest:
        """Return the rows whose split is one of `names`."""
        codes, known = self._coded["split"]
        return self.select(np.isin(codes, [known.index(name) for name in names if name in known]))

    def keep_domains(self, names: Sequence[str]) -> Manifest:
        """Return the rows of these domains.

        Raises:
            UserError: a domain that no row has.

        """
        unknown = sorted(set(names) - set(self.domain_names))
        if unknown:
            accepted = ", ".join(self.domain_names)
            raise UserError(f"dataset {self.name}: unknown domain {unknown[0]!r}; accepted: {accepted}")
        return self.select(np.isin(self.domains, [self.domain_names.index(name) for name in names]))

    def fingerprint(self) -> str:
        """Return 16 hex digits of the file list, entries, labels and domains, in row order."""
        digest = hashlib.sha256()
        for column in self._where:
            _feed(digest, column)
        for column_name in ("label", "domain"):
            codes, names = self._coded[column_name]
            digest.update(np.ascontiguousarray(codes).data)
            digest.update("\0".join(names).encode())
        if CROP in self.table.column_names:
            _feed(digest, _one_chunk(self.table[CROP]))
        return digest.hexdigest()[:16]

    def write(self, path: str | Path) -> None:
        """Write the table as parquet or csv (by the name's end), atomically."""
        from pyarrow import csv, parquet

        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        table = self.table.cast(_plain_schema(self.table.schema))
        if path.suffix == ".csv":
            csv.write_csv(table, partial)
        else:
            parquet.write_table(table, partial)
        os.replace(partial, path)


def open_manifest(
    path: str | Path,
    root: str | Path,
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    cache_dir: str | Path | None = None,
) -> Manifest:
    """Return the manifest of a csv or parquet file, by way of a checked Arrow copy that is mapped.

    `columns` renames: {"file": "path"} reads our `file` from the source's `path`. `constants` gives a
    column that the source lacks. The copy is keyed by the source's sha256 and lies in `cache_dir`, else
    in `.guie` beside the source, else (read-only) in ~/.cache/guie.

    Raises:
        UserError: missing file or column, or rows that validation refuses, with examples.

    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"dataset {name}: no manifest at {path}; accepted: a .csv or .parquet file")
    settings = repr((_FORMAT, sorted((columns or {}).items()), sorted((constants or {}).items())))
    digest = _sha256_of(path)
    digest.update(settings.encode())
    copy = _writable(path, cache_dir) / f"{path.stem}-{digest.hexdigest()[:16]}.arrow"
    if not copy.exists():
        source = _rename(_read_source(path), columns or {}, constants or {}, path)
        _write_arrow(make_table(source, name), copy)
    return Manifest(name, Path(root).expanduser(), _map_arrow(copy))


def from_columns(name: str, root: str | Path, columns: Mapping[str, object]) -> Manifest:
    """Return a checked manifest of columns (lists or arrays) made in memory; `file` and `label` required."""
    return Manifest(name, root, make_table(pa.table(dict(columns)), name))


def make_table(source: pa.Table, name: str) -> pa.Table:
    """Check a raw table and return it with the manifest's columns, types and one chunk.

    Raises:
        UserError: one line with the first examples of what is wrong.

    """
    for column in ("file", "label"):
        if column not in source.column_names:
            raise UserError(
                f"dataset {name}: no column {column!r} (found {', '.join(source.column_names)}); "
                "accepted: file, label and optionally entry, domain, split"
            )
    if source.num_rows == 0:
        raise UserError(f"dataset {name}: 0 rows; accepted: at least one")
    made = {
        "file": _text(source["file"], name).fill_null("").cast(pa.large_string()),
        "entry": _optional(source, "entry", name, None),
        "label": _text(source["label"], name),
        "domain": _optional(source, "domain", name, ""),
        "split": _optional(source, "split", name, "train"),
    }
    _check(made, name)
    for column in _CODED:
        made[column] = _sorted_codes(made[column])
    for column in source.column_names:
        made.setdefault(column, source[column])
    return pa.table(made).combine_chunks()


def concatenate(manifests: Sequence[Manifest]) -> Manifest:
    """Return several manifests as one below their roots' common folder; labels become `name/label`.

    A single manifest comes back unchanged. Of the columns beyond the five those stay that all have, with
    one type: width, height, sha256 and phash where each was prepared.
    """
    if len(manifests) == 1:
        return manifests[0]
    root = Path(os.path.commonpath([m.root.resolve() for m in manifests]))
    further = _shared_columns([manifest.table for manifest in manifests])
    tables = []
    for manifest in manifests:
        prefix = os.path.relpath(manifest.root.resolve(), root)
        table = manifest.table
        made = {
            "file": _prefixed(table["file"], "" if prefix == "." else prefix + "/"),
            "entry": table["entry"],
            "label": _prefixed(table["label"], manifest.name + "/"),
            "domain": table["domain"].cast(pa.string()),
            "split": table["split"].cast(pa.string()),
        }
        tables.append(pa.table(made | {column: table[column] for column in further}))
    name = "+".join(manifest.name for manifest in manifests)
    return Manifest(name, root, make_table(pa.concat_tables(tables), name))


def _shared_columns(tables: Sequence[pa.Table]) -> list[str]:
    """Return the columns beyond the five that every table has with the same type."""
    first, *others = (table.schema for table in tables)
    five = {"file", "entry", *_CODED}
    return [
        field.name
        for field in first
        if field.name not in five
        and all(other.get_field_index(field.name) >= 0 for other in others)
        and all(other.field(field.name).type == field.type for other in others)
    ]


def _prefixed(column: pa.ChunkedArray, prefix: str) -> pa.ChunkedArray:
    text = column.cast(pa.large_string())
    return pc.binary_join_element_wise(
        pa.scalar(prefix, pa.large_string()), text, pa.scalar("", pa.large_string())
    )


def _check(made: Mapping[str, pa.ChunkedArray], name: str) -> None:
    files, labels = made["file"], made["label"]
    _refuse(
        pc.match_substring_regex(files, _ESCAPES),
        files,
        f"dataset {name}: paths that leave the root",
        "paths below",
    )
    empty = pc.or_kleene(labels.is_null(), pc.equal(pc.utf8_trim_whitespace(labels), ""))
    _refuse(pc.fill_null(empty, True), files, f"dataset {name}: empty labels at", "a label for every row")
    negative = pc.match_substring_regex(labels, r"^\s*-\d+(\.\d*)?\s*$")
    _refuse(negative, files, f"dataset {name}: negative labels at", "labels that are names or numbers from 0")
    splits = made["split"]
    unknown = pc.invert(pc.is_in(splits, pa.array(SPLITS)))
    _refuse(unknown, splits, f"dataset {name}: unknown splits", ", ".join(SPLITS))
    _refuse_duplicates(made, name)


def _refuse(wrong: pa.ChunkedArray, shown: pa.ChunkedArray, what: str, accepted: str) -> None:
    count = pc.sum(wrong).as_py() or 0
    if count:
        rows = np.flatnonzero(wrong.to_numpy())[:3]
        examples = ", ".join(f"row {i}: {shown[int(i)].as_py()!r}" for i in rows)
        raise UserError(f"{what} ({count} rows; {examples}); accepted: {accepted}")


def _refuse_duplicates(made: Mapping[str, pa.ChunkedArray], name: str) -> None:
    keys = pa.table({"file": made["file"], "entry": made["entry"]})
    counts = keys.group_by(["file", "entry"]).aggregate([([], "count_all")])
    if counts.num_rows == keys.num_rows:
        return
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    places = zip(twice["file"][:3].to_pylist(), twice["entry"][:3].to_pylist(), strict=True)
    examples = ", ".join(file if entry is None else f"{file}[{entry}]" for file, entry in places)
    raise UserError(
        f"dataset {name}: {twice.num_rows} pictures listed twice or more ({examples}); accepted: each once"
    )


def _text(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(
            f"dataset {name}: a column of type {column.type}; accepted: text or numbers"
        ) from None


def _optional(source: pa.Table, column: str, name: str, default: str | None) -> pa.ChunkedArray:
    if column not in source.column_names:
        return pa.chunked_array([pa.repeat(pa.scalar(default, pa.string()), source.num_rows)])
    text = _text(source[column], name)
    if default is None:
        return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    return pc.if_else(pc.equal(text, ""), default, text).fill_null(default)


def _sorted_codes(column: pa.ChunkedArray) -> pa.DictionaryArray:
    coded = _one_chunk(column).dictionary_encode()
    order = np.argsort(np.asarray(coded.dictionary.to_pylist(), dtype=object), kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    codes = pa.array(rank[coded.indices.to_numpy()])
    return pa.DictionaryArray.from_arrays(codes, coded.dictionary.take(pa.array(order)))


def _compact(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Return codes (N,) int64 over the values that occur and those values; the dictionary is sorted."""
    coded = _one_chunk(column)
    present, codes = np.unique(coded.indices.to_numpy(zero_copy_only=False), return_inverse=True)
    return codes.astype(np.int64, copy=False), coded.dictionary.take(
        pa.array(present, pa.int64())
    ).to_pylist()


def _one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.unify_dictionaries().chunks)


def _feed(digest, column: pa.Array) -> None:
    """Hash a text column without making Python strings; null differs from every string."""
    column = column.cast(pa.large_string())
    lengths = pc.fill_null(pc.binary_length(column), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    digest.update(lengths.data)
    _, offsets, data = column.buffers()
    edges = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    if data is not None and len(edges):
        digest.update(memoryview(data)[edges[0] : edges[-1]])


def _rename(
    source: pa.Table, columns: Mapping[str, str], constants: Mapping[str, str], path: Path
) -> pa.Table:
    made = {column: source[column] for column in source.column_names if column not in columns.values()}
    for ours, theirs in columns.items():
        if theirs not in source.column_names:
            found = ", ".join(source.column_names)
            raise UserError(f"{path}: no column {theirs!r} for {ours!r}; accepted: one of {found}")
        made[ours] = source[theirs]
    for column, value in constants.items():
        made[column] = pa.chunked_array([pa.repeat(value, source.num_rows)])
    return pa.table(made)


def _read_source(path: Path) -> pa.Table:
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".csv":
            # every column as text: a label column '01', '02' must not become numbers
            with csv.open_csv(path) as head:
                names = head.schema.names
            types = csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            )
            return csv.read_csv(path, convert_options=types)
        if path.suffix == ".parquet":
            return parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    raise UserError(f"{path}: unknown kind {path.suffix!r}; accepted: .csv, .parquet")


def _sha256_of(path: Path):
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_MIB):
            digest.update(block)
    return digest


def _writable(path: Path, cache_dir: str | Path | None) -> Path:
    candidates = [Path(cache_dir)] if cache_dir else [path.parent / ".guie", Path.home() / ".cache" / "guie"]
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise UserError(f"{path}: no folder to write its Arrow copy; tried {', '.join(map(str, candidates))}")


def _write_arrow(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    os.replace(partial, path)


def _map_arrow(path: Path) -> pa.Table:
    # the mapping must outlive this call: Arrow's buffers hold it
    return pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema]
    )
