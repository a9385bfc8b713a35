"""Rows of a table as a packed dataset: coded once, so that every rank and every attempt sees the same numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlhpc.data.catalog import Catalog
from dlhpc.data.index import Index, Shard
from dlhpc.data.pack import ChangedPictures
from dlhpc.data.packed import CHECKSUM_BYTES, SAMPLE, SOURCE, Packed, checksum, crc, open_packed
from dlhpc.data.shards import HEADER_BYTES, npy_header
from dlhpc.data.splits import SPLITS
from dlhpc.data.workplace import check_space, publish, workplace
from dlhpc.data.writing import Table, write_index, write_table
from dlhpc.errors import DataError, StorageError
from dlhpc.files import replace_bytes, storage_errors

ROWS = "rows.npy"


def pack_rows(
    catalog: Catalog,
    table: Mapping[str, Any],
    folder: Path,
    *,
    key: str,
    trained_on: str | None = None,
    replace_damaged: bool = True,
) -> Packed:
    """The packed rows in ``folder``, made now if they are not there; ``table`` is the spec's ``data.table``.

    Raises :class:`DataError` for what cannot be learnt from, :class:`ChangedPictures` for a table that has changed
    since it was listed (unless the rows have the fingerprint ``trained_on``), :class:`StorageError`.
    """
    with contextlib.suppress(DataError, StorageError):
        return open_packed(folder)
    coded = importlib.import_module("dlhpc.data.coding").code_table(catalog, table)
    with storage_errors(folder.parent, "create"):
        folder.parent.mkdir(parents=True, exist_ok=True)
    signature = hashlib.sha256(key.encode()).hexdigest()[:12]
    with workplace(folder, signature) as beside:
        index = write_rows(beside, catalog, coded)
        if coded.changed and index.fingerprint != trained_on:
            raise ChangedPictures(sorted(coded.changed), "table")
        write_index(beside, dataclasses.replace(index, key=key))
        publish(beside, folder, replace_damaged=replace_damaged)
    return open_packed(folder)


def write_rows(folder: Path, catalog: Catalog, coded: Any) -> Index:
    """Write rows and table of a ``dlhpc.data.coding.CodedTable``; the index of the dataset, without its key."""
    present = [split for split in SPLITS if split in coded.inputs]
    rows = np.concatenate([coded.inputs[split] for split in present]).astype(np.float32)
    check_space(folder, 2.0 * rows.nbytes)
    content = npy_header(rows.dtype, rows.shape) + rows.tobytes()
    replace_bytes(folder / ROWS, content)
    size = rows.shape[1] * 4
    samples, sources = np.zeros(len(rows), SAMPLE), np.zeros(len(rows), SOURCE)
    samples["offset"] = HEADER_BYTES + np.arange(len(rows)) * size
    samples["length"] = size
    for number, row in enumerate(rows):
        sources["checksum"][number] = np.frombuffer(checksum(row.data.cast("B")), np.uint8, CHECKSUM_BYTES)
    index = Index(
        kind="table",
        task=catalog.task,
        storage="raw",
        dtype="float32",
        byte_order=sys.byteorder,
        classes=catalog.classes,
        counts={},
        class_counts={},
        mean=np.asarray(coded.mean, np.float64).tolist(),
        std=np.asarray(coded.std, np.float64).tolist(),
        shards=[Shard(ROWS, len(content), len(rows), crc(content))],
        files={},
        fingerprint="",
        several_labels=catalog.several_labels,
        target_names=catalog.target_names,
        target_mean=np.asarray(coded.target_mean, np.float64).tolist(),
        target_std=np.asarray(coded.target_std, np.float64).tolist(),
        features=list(coded.features),
        coding=coded.coding,
        notes=list(coded.notes),
    )
    paths = [origin for split in present for origin in coded.origins[split]]
    targets = np.concatenate([coded.targets[split] for split in present])
    counts: dict[str, int] = {split: len(coded.inputs[split]) if split in coded.inputs else 0 for split in SPLITS}
    return write_table(folder, index, Table(samples, sources, paths, targets, counts), {})
