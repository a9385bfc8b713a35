"""Writing tensors to a file while training goes on with them.

A checkpoint of weights and optimiser state is several times the weights, and most of it lies in memory already. So it
is not copied: a thread reads it piece by piece from where it is. Only optimiser steps change these tensors; right
before one, :meth:`Held.keep_all` copies what has not been read yet, mostly nothing.

The file format is that of safetensors (https://huggingface.co/docs/safetensors, "Format"): the length of the header as
8 bytes, little-endian; the header, JSON: name → dtype, shape, offsets; the raw bytes of the tensors.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK_BYTES = 4 * 2**20

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class _Tensor:
    """One tensor, of which the first rows have been read."""

    def __init__(self, tensor: Tensor, ours: bool) -> None:
        self._ours = ours
        self.dtype, self.shape = _NAMES[tensor.dtype], list(tensor.shape)
        self.bytes = tensor.numel() * tensor.element_size()
        self.item_bytes = tensor.element_size()
        rows = tensor.detach() if tensor.dim() else tensor.detach()[None]
        self._rows: NDArray[np.generic] = _as_numpy(rows)

    def next_rows(self) -> NDArray[np.generic] | None:
        """Rows that have not been read yet, some 4 MiB of them."""
        if not self._rows.size:
            return None
        count = max(1, CHUNK_BYTES * len(self._rows) // self._rows.nbytes)
        piece, self._rows = self._rows[:count], self._rows[count:]
        return piece

    def keep(self) -> int:
        """Copy what has not been read, unless nobody else has this memory; gives the number of bytes."""
        if self._ours:
            return 0
        self._ours = True
        self._rows = self._rows.copy(order="K")
        return self._rows.nbytes


class Held:
    """Named tensors that keep the values of this moment until they have been written.

    Those on a GPU are copied to page-locked memory of the host at once, beside the computation.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._lock = threading.Lock()
        self._copied: torch.cuda.Event | None = None
        elsewhere = {name: tensor for name, tensor in tensors.items() if tensor.device.type != "cpu"}
        copies = self._from_gpu(elsewhere) if elsewhere else {}
        self._tensors = {name: _Tensor(copies.get(name, one), name in copies) for name, one in tensors.items()}

    @property
    def names(self) -> list[str]:
        return list(self._tensors)

    def _from_gpu(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        device = next(iter(tensors.values())).device
        beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            copies = {
                name: torch.empty_like(one, device="cpu", pin_memory=True).copy_(one, non_blocking=True)
                for name, one in tensors.items()
            }
            for one in tensors.values():
                one.record_stream(beside)
        self._copied = beside.record_event()
        return copies

    def keep_all(self) -> int:
        """The tensors are about to change: from now on read copies. Gives the number of bytes that were copied."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
        with self._lock:
            return sum(tensor.keep() for tensor in self._tensors.values())

    def write(self, path: Path, names: Mapping[str, str], notes: Mapping[str, str]) -> tuple[str, int]:
        """Write a new file: ``names`` maps names of the file to those of this object, ``notes`` are texts for its
        header. Gives SHA-256 and length in bytes; raises OSError. Each tensor can be written once.
        """
        if self._copied is not None:
            self._copied.synchronize()
        # The largest numbers first, so that each is aligned; else as given.
        chosen = sorted(
            ((name, self._tensors[ours]) for name, ours in names.items()), key=lambda pair: -pair[1].item_bytes
        )
        digest, length = hashlib.sha256(), 0
        contents: Iterator[memoryview] = chain(
            [memoryview(_header(chosen, notes))], *(self._content(tensor) for _, tensor in chosen)
        )
        with path.open("xb", buffering=0) as file:
            for content in contents:
                digest.update(content)
                rest = content
                while rest:
                    rest = rest[file.write(rest) :]
                length += len(content)
        return digest.hexdigest(), length

    def _content(self, tensor: _Tensor) -> Iterator[memoryview]:
        """The bytes in row-major order, in pieces; each may be used until the next is asked for."""
        buffer = np.empty(0, np.uint8)
        while True:
            with self._lock:
                rows = tensor.next_rows()
                if rows is None:
                    return
                if len(buffer) < rows.nbytes:
                    buffer = np.empty(max(rows.nbytes, min(CHUNK_BYTES, tensor.bytes)), np.uint8)
                content = buffer[: rows.nbytes]
                np.copyto(content.view(rows.dtype).reshape(rows.shape), rows)
            yield content.data


def _header(tensors: list[tuple[str, _Tensor]], notes: Mapping[str, str]) -> bytes:
    if sys.byteorder != "little":
        raise RuntimeError("safetensors are little-endian, this machine is not")
    header: dict[str, object] = {"__metadata__": dict(notes)} if notes else {}
    offset = 0
    for name, tensor in tensors:
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, offset + tensor.bytes]}
        offset += tensor.bytes
    content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _as_numpy(tensor: Tensor) -> NDArray[np.generic]:
    """The same memory; NumPy has no bfloat16, so that comes as integers of the same bits."""
    found: NDArray[np.generic] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found
