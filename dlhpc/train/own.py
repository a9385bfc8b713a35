"""The user's own code: a network (``network.file``) or losses and measures (``task_file``) in one Python file.

``network(shape, **options) -> nn.Module`` gets a :class:`Shape`; the module maps normalised inputs (float32, pictures
N×C×H×W or rows N×F) to N×``outputs`` numbers. A task file has one or both of

* ``loss(outputs, targets) -> Tensor``: one loss a sample (n), which is trained on and becomes train and val ``loss``;
* ``measures(outputs, targets) -> dict[str, Tensor]``: further numbers, one a sample (n) each; the curves show their
  mean over all samples of the split, however many ranks shared them.

Somebody else's file is not executed unasked: it must belong to whoever runs this, or to root.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlhpc.errors import DlhpcError, Place, UserError
from dlhpc.files import storage_errors

TRUST = "DLHPC_TRUST"
"""Environment variable that, set to 1, lets files of other users be executed."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Shape:
    """What a network gets and what it must give."""

    kind: Literal["pictures", "table"]
    channels: int
    """Of pictures; 0 for a table, as ``height`` and ``width``."""
    height: int
    """After the crop."""
    width: int
    features: int
    """Columns of a table after coding its categories; 0 for pictures."""
    outputs: int
    """Numbers a sample: one a class, or one a target of a regression."""
    classes: tuple[str, ...] = ()
    """Names of the classes; none for a regression."""

    def zeros(self, count: int) -> Tensor:
        """So many empty samples, as a network sees them."""
        if self.kind == "table":
            return torch.zeros(count, self.features)
        return torch.zeros(count, self.channels, self.height, self.width)


@dataclass(frozen=True)
class OwnCode:
    """A loaded file."""

    path: Path
    module: ModuleType

    def find(self, name: str) -> Callable[..., Any] | None:
        """The function of this name, if the file has one."""
        found = getattr(self.module, name, None)
        if found is not None and not callable(found):
            raise UserError(f"`{name}` is no function", where=self.path, remedy=f"Write `def {name}(…):`.")
        return found

    def call(self, name: str, function: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Call one of its functions; whatever it raises becomes a :class:`UserError` with the line of the file."""
        try:
            return function(*values, **named)
        except (DlhpcError, MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            if "allocate memory" in str(error):  # of the CPU: the trainer knows what to do
                raise
            raise _fault(self.path, f"{name} failed", error, function) from error

    def wrong(self, function: Callable[..., Any], what: str, remedy: str) -> UserError:
        """An error about what a function gave, with the line where it begins."""
        code = getattr(function, "__code__", None)
        return UserError(what, where=Place(str(self.path), getattr(code, "co_firstlineno", None)), remedy=remedy)


def load_own(path: str | Path) -> OwnCode:
    """Read and execute a user's file. Raises :class:`UserError` with file and line for whatever is wrong in it."""
    path = Path(path)
    with storage_errors(path, "read"):
        descriptor = os.open(path, os.O_RDONLY)
        with open(descriptor, "rb") as file:
            _demand_trust(path, os.fstat(descriptor))  # of the very file that is read next
            source = file.read()
    module = ModuleType(f"dlhpc_own_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}")
    module.__file__ = str(path)
    try:
        code = compile(source, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        what = f"line {line} is not Python: {getattr(error, 'msg', error)}"
        raise UserError(what, where=Place(str(path), line), remedy="Mend this line.") from error
    sys.modules[module.__name__] = module  # data classes look their module up
    try:
        exec(code, module.__dict__)  # noqa: S102 - this is what the user asks for
    except (Exception, SystemExit) as error:
        raise _fault(path, "cannot be loaded", error) from error
    return OwnCode(path, module)


def own_network(path: str | Path, options: dict[str, Any], shape: Shape) -> nn.Module:
    """The network of a user's file, tried on two empty samples in training and on one in evaluation mode.

    The caller seeds torch's generator, which decides the weights. Raises :class:`UserError` if it is no module, cannot
    take the input, or does not give N×``outputs`` numbers.
    """
    code = load_own(path)
    make = code.find("network")
    if make is None:
        raise UserError(
            "has no function `network`",
            where=path,
            remedy="Write `def network(shape, **options):` that returns a torch.nn.Module; see the user guide.",
        )
    network = code.call("network()", make, shape, **options)
    if not isinstance(network, nn.Module):
        what = f"network() gave {_kind(network)}, not a torch.nn.Module"
        raise code.wrong(make, what, "Return the network itself, for example `return nn.Sequential(…)`.")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise code.wrong(make, "the network has no weights to learn", "Build it of layers such as nn.Linear.")
    buffers = [buffer.clone() for buffer in network.buffers()]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for training, count in ((True, 2), (False, 1)):
            given = code.call("the network", network.train(training), shape.zeros(count))
            if not isinstance(given, Tensor) or given.shape != (count, shape.outputs) or not given.is_floating_point():
                raise code.wrong(
                    make,
                    f"the network gives {_kind(given)} for {count} samples",
                    f"It must give {count}×{shape.outputs} numbers: `shape.outputs` for each sample.",
                )
        for buffer, before in zip(network.buffers(), buffers):  # what batch normalisation saw was not data
            buffer.copy_(before)
    return network.train()


@dataclass(frozen=True)
class OwnTask:
    """Losses and measures of a task file; without a file it has neither."""

    code: OwnCode | None = None

    @property
    def has_loss(self) -> bool:
        return self.code is not None and self.code.find("loss") is not None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One loss a sample (n), out of outputs (n×outputs) and the targets of the base task."""
        assert self.code is not None
        function = self.code.find("loss")
        assert function is not None
        given = self.code.call("loss()", function, outputs, targets)
        return self._each(function, "loss()", given, len(outputs))

    def measures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Name → one number a sample (n); empty if the file has none."""
        function = None if self.code is None else self.code.find("measures")
        if self.code is None or function is None:
            return {}
        given = self.code.call("measures()", function, outputs, targets)
        if not isinstance(given, dict):
            raise self.code.wrong(
                function, f"measures() gave {_kind(given)}", 'Return a dictionary: {"name": one number a sample}.'
            )
        for name in given:
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "loss":
                raise self.code.wrong(
                    function,
                    f"measures() calls a measure {name!r}",
                    "Use small letters, digits and `_`, beginning with a letter; `loss` is that of loss().",
                )
        return {
            name: self._each(function, f"measures() → {name}", value, len(outputs)) for name, value in given.items()
        }

    def check(self, outputs: Tensor, targets: Tensor) -> tuple[str, ...]:
        """Try both functions on a few samples before training begins; gives the names of the measures."""
        if self.code is None:
            return ()
        outputs = outputs.detach().clone().requires_grad_()
        if self.has_loss and not self.loss(outputs, targets).requires_grad:
            raise self.code.wrong(
                self.code.module.loss,
                "loss() does not depend on the outputs, so nothing can be learnt",
                "Compute it from `outputs` with torch, without detach(), item() or NumPy.",
            )
        with torch.no_grad():
            return tuple(sorted(self.measures(outputs.detach(), targets)))

    def _each(self, function: Callable[..., Any], what: str, given: Any, count: int) -> Tensor:
        assert self.code is not None
        if not isinstance(given, Tensor) or given.shape != (count,):
            raise self.code.wrong(
                function,
                f"{what} gave {_kind(given)} for {count} samples",
                "Return one number for each sample, a tensor of that length: no mean or sum over the samples "
                '(with PyTorch\'s losses: reduction="none").',
            )
        return given.float()


class OwnSums:
    """The sums of a task file's measures on one rank."""

    def __init__(self, own: OwnTask, names: tuple[str, ...]) -> None:
        self.own, self.names = own, names
        self.sums = torch.zeros(len(names), dtype=torch.float64)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        if not self.names:
            return
        given = self.own.measures(outputs, targets)
        if tuple(sorted(given)) != self.names:
            raise UserError(
                f"measures() gave {', '.join(sorted(given)) or 'nothing'}, but {', '.join(self.names)} before",
                where=None if self.own.code is None else self.own.code.path,
                remedy="Return the same names for every batch.",
            )
        self.sums += torch.stack([given[name].double().sum() for name in self.names]).cpu()

    def means(self, totals: Tensor, samples: float) -> dict[str, float]:
        """Name → mean, out of the sums over all ranks."""
        return {name: float(total) / samples for name, total in zip(self.names, totals)}


def own_task(path: str | Path | None) -> OwnTask:
    """The task file of a spec; :class:`UserError` if it cannot be loaded or has neither function."""
    if path is None:
        return OwnTask()
    code = load_own(path)
    if code.find("loss") is None and code.find("measures") is None:
        raise UserError(
            "has neither a function `loss` nor `measures`",
            where=path,
            remedy="Write `def loss(outputs, targets):` or `def measures(outputs, targets):`; see the user guide.",
        )
    return OwnTask(code)


def _demand_trust(path: Path, status: os.stat_result) -> None:
    if os.environ.get(TRUST) == "1":
        return
    if status.st_uid not in (os.getuid(), 0):
        raise UserError(
            f"is code that would be executed, and it belongs to {_user(status.st_uid)}",
            where=path,
            remedy=f"Read it; if you trust it, repeat the command with {TRUST}=1 before it.",
        )
    if status.st_mode & stat.S_IWOTH:
        raise UserError(
            "is code that would be executed, and it may be changed by everybody",
            where=path,
            remedy=f"Read it, then allow that to nobody else: chmod o-w {shlex.quote(str(path))}",
        )


def _user(uid: int) -> str:
    import pwd

    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user number {uid}"


def _fault(path: Path, what: str, error: BaseException, function: Callable[..., Any] | None = None) -> UserError:
    """What a user's code raised, with the last line of the file that was at work."""
    line = _line_in(path, error.__traceback__)
    if line is None:  # it was not even entered: wrong arguments
        line = getattr(getattr(function, "__code__", None), "co_firstlineno", None)
    said = str(error).splitlines()
    at = "" if line is None else f" in line {line}"  # the journal keeps the sentence alone
    return UserError(
        f"{what}{at}: {type(error).__name__}" + (f": {said[0]}" if said else ""),
        where=Place(str(path), line),
        remedy="Mend the file and submit anew.",
    )


def _line_in(path: Path, traceback: TracebackType | None) -> int | None:
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        shape = "×".join(map(str, value.shape)) if value.dim() else "a single number"
        return f"{shape} ({str(value.dtype).removeprefix('torch.')})"
    return "nothing" if value is None else f"a {type(value).__name__}"
