"""From a YAML file to a typed model, with every fault shown at once and each at its line.

YAML is read as version 1.2 (`no` is a word, `2:00:00` is text). The document keeps its comments and line numbers,
so overrides given on the command line can be written back into a copy without losing what the user wrote.
"""

from __future__ import annotations

import difflib
import io
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from dlhpc.errors import ErrorList, Place, UserError
from dlhpc.files import read_user_text
from dlhpc.spec.models import Spec

AnyModel = TypeVar("AnyModel", bound=BaseModel)
Location = tuple[str | int, ...]


@dataclass
class Document:
    """A YAML mapping with the positions of its keys; ``path`` is what messages call it."""

    path: Path
    root: CommentedMap
    overridden: dict[str, str]
    """Dotted keys that came from the command line, with the text given there."""

    def place(self, location: Location) -> Place:
        """Where ``location`` stands: its key, or the nearest key above that exists."""
        dotted = ".".join(str(part) for part in location)
        for key, text in self.overridden.items():
            if dotted == key or dotted.startswith(key + ".") or key.startswith(dotted + "."):
                return Place(f"--set {key}={text}")
        node: Any = self.root
        line: int | None = None
        for part in location:
            if isinstance(node, CommentedMap) and part in node:
                line = node.lc.key(part)[0]
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line = node.lc.item(part)[0]
            else:
                break
            node = node[part]
        return Place(str(self.path), None if line is None else line + 1)

    def text(self) -> str:
        """The document as YAML, comments kept."""
        buffer = io.StringIO()
        _yaml().dump(self.root, buffer)
        return buffer.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def read_document(path: Path) -> Document:
    """Read a YAML file whose top is a mapping; :class:`UserError` with file and line for anything else."""
    if not path.exists():
        near = difflib.get_close_matches(path.name, [entry.name for entry in _siblings(path)], n=1)
        remedy = (
            f"Did you mean {path.with_name(near[0])}?" if near else "Check the path, or write one with `dlhpc init`."
        )
        raise UserError("there is no such file", where=path, remedy=remedy)
    if path.is_dir():
        raise UserError("is a folder, not a YAML file", where=path, remedy="Name the YAML file inside it.")
    return parse_document(read_user_text(path), path)


def _siblings(path: Path) -> list[Path]:
    try:
        return list(path.parent.iterdir())
    except OSError:
        return []


def parse_document(text: str, path: Path) -> Document:
    """As :func:`read_document`, from text; ``path`` is only for messages."""
    try:
        root = _yaml().load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        what = str(error.problem or "a key is given twice").split(" with value")[0].replace('"', "`")
        raise UserError(what, where=Place(str(path), line), remedy="Keep one of the two.") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(
            f"is not valid YAML: {error.problem or error.context}",
            where=Place(str(path), mark.line + 1 if mark else None),
            remedy="Check indentation (spaces, no tabs), a colon and a blank after each key, and quotes.",
        ) from error
    except RecursionError as error:
        raise UserError("is nested too deeply", where=path, remedy="See `dlhpc init --help` for a spec.") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"holds the character U+{ord(text[error.position]):04X}, which YAML does not allow"
        raise UserError(what, where=Place(str(path), line), remedy="Remove it.") from error
    except (YAMLError, ValueError) as error:
        raise UserError(f"is not valid YAML: {error}", where=path, remedy="Check the file in an editor.") from error
    if not isinstance(root, CommentedMap):
        raise UserError(
            "must hold `key: value` lines at its top",
            where=Place(str(path), 1),
            remedy="`dlhpc init` writes a spec, `dlhpc site init` a site profile.",
        )
    return Document(path, root, {})


def override(document: Document, settings: Sequence[str]) -> None:
    """Apply ``key.sub=value`` settings, values read as YAML, to the document in place."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(
                f"`--set {setting}` has no `key=value`", remedy="Write for example --set training.epochs=60"
            )
        try:
            value = _yaml().load(text)
        except YAMLError as error:
            raise UserError(f"`--set {setting}`: the value is not valid YAML", remedy="Quote the value.") from error
        *above, last = key.split(".")
        node = document.root
        for part in above:
            below = node.get(part)
            if not isinstance(below, CommentedMap):
                below = CommentedMap()
                node[part] = below
            node = below
        node[last] = value
        document.overridden[key] = text


_MOST_VALUES = 100_000


def plain(document: Document) -> Any:
    """Nested dicts and lists of what the YAML held. Aliases are written out, so there is a limit to how many."""
    left = iter(range(_MOST_VALUES))

    def walk(node: Any) -> Any:
        if next(left, None) is None:
            raise UserError(
                f"holds more than {_MOST_VALUES} values", where=document.path, remedy="Use fewer `*` aliases."
            )
        if isinstance(node, CommentedMap):
            return {key if isinstance(key, str) else str(key): walk(value) for key, value in node.items()}
        if isinstance(node, CommentedSeq):
            return [walk(value) for value in node]
        return _scalar(node)

    return walk(document.root)


def _scalar(node: Any) -> Any:
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, int):
        return int(node)
    if isinstance(node, float):
        return float(node)
    return str(node)


def validate(document: Document, model: type[AnyModel]) -> AnyModel:
    """Turn a document into ``model``; :class:`ErrorList` holds every fault, each at its line, with a remedy."""
    try:
        return model.model_validate(plain(document))
    except ValidationError as error:
        faults = [kind_error(document, model, detail) for detail in error.errors()]
    faults.sort(key=lambda fault: _line_of(fault))
    raise ErrorList(faults)


def load_spec(path: Path, settings: Sequence[str] = ()) -> tuple[Spec, Document]:
    """Load a spec file with command-line overrides applied."""
    document = read_document(path)
    override(document, settings)
    return validate(document, Spec), document


def _line_of(fault: UserError) -> tuple[bool, int]:
    _, _, line = (fault.where or "").rpartition(":")
    return (not line.isdigit(), int(line) if line.isdigit() else 0)


def kind_error(document: Document, model: type[BaseModel], detail: ErrorDetails) -> UserError:
    """One of pydantic's errors as a sentence with its place and a remedy."""
    location = tuple(detail["loc"])
    name = ".".join(str(part) for part in location)
    place = document.place(location)
    match detail["type"]:
        case "extra_forbidden":
            known = list(_model_at(model, location[:-1]).model_fields)
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            remedy = f"Did you mean `{near[0]}`? " if near else ""
            return UserError(f"unknown key `{name}`", where=place, remedy=f"{remedy}Known here: {', '.join(known)}.")
        case "missing":
            field = _model_at(model, location[:-1]).model_fields.get(str(location[-1]))
            meaning = f" ({field.description.strip()})" if field is not None and field.description else ""
            return UserError(f"`{name}` is missing", where=place, remedy=f"Add it{meaning}.")
        case "literal_error":
            expected = detail["ctx"]["expected"]
            choices = [choice.strip(" '") for choice in expected.replace(" or ", ",").split(",")]
            near = difflib.get_close_matches(str(detail["input"]), choices, n=1, cutoff=0.5)
            remedy = f"Did you mean `{near[0]}`? " if near else ""
            return UserError(
                f"`{name}` cannot be `{detail['input']}`",
                where=place,
                remedy=f"{remedy}Choose from {', '.join(choices)}.",
            )
        case "value_error":
            what = str(detail["ctx"]["error"])
            return UserError(f"`{name}`: {what}" if name else what, where=place, remedy="Change it and try again.")
        case "model_type" | "model_attributes_type" | "dict_type":
            keys = list(_model_at(model, location).model_fields)
            return UserError(
                f"`{name}` must hold `key: value` lines", where=place, remedy=f"Its keys are {', '.join(keys)}."
            )
        case _:
            message = detail["msg"][0].lower() + detail["msg"][1:]
            return UserError(
                f"`{name}`: {message} (given: {_shown(detail['input'])})", where=place, remedy=_example(model, location)
            )


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _example(model: type[BaseModel], location: Location) -> str:
    field = _model_at(model, location[:-1]).model_fields.get(str(location[-1])) if location else None
    if field is None or field.is_required() or field.default in (None, ""):
        return "Correct the value."
    return f"Correct the value; the default is {field.default}."


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    """The model whose fields stand at ``location``; the nearest one above where that is not a model."""
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = _model_in(field.annotation) if field is not None else None
        if inner is None:
            return model
        model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, list, dict):
        for part in typing.get_args(annotation):
            if (found := _model_in(part)) is not None:
                return found
    return None
