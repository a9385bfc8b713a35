"""From a spec with a sweep to its members: expanded, checked and decided, every one before anything is written.

Members are decided one after another and forgotten, so that a large sweep needs little memory.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from dlhpc import __version__
from dlhpc.data.catalog import Catalog, make_catalog
from dlhpc.errors import UserError
from dlhpc.jobs.experience import Experience
from dlhpc.jobs.plan import decide, kinds_of_nodes, own_template
from dlhpc.jobs.sources import PATHS, PRETRAINED, make_paths_absolute, pinned
from dlhpc.jobs.sweep_faults import Faults, validate_all, with_settings
from dlhpc.runs.find import find_run
from dlhpc.runs.plan import Plan
from dlhpc.runs.sweep import SweepRecord
from dlhpc.schedulers.base import get_scheduler
from dlhpc.schedulers.local_queue import offered_cores, offered_gpus
from dlhpc.sites.load import find_site, load_site
from dlhpc.sites.models import Node
from dlhpc.spec.base import format_duration
from dlhpc.spec.data import SOURCES
from dlhpc.spec.load import Document, override, plain, read_document, validate
from dlhpc.spec.models import Data, Spec
from dlhpc.spec.sweep import Settings, Sweep, all_keys, count_members, expand, full_keys, read_axes

if TYPE_CHECKING:
    from dlhpc.sites.models import Site

DEFAULT_CAP = 10
"""Members in the queue at a time, where they are submitted one by one and nobody says otherwise."""

_CATALOG = (*SOURCES, "split", "min_per_class", "max_per_class", "several_labels")
"""Keys of ``data`` that decide which pictures there are; the others only say what is made of them."""


@dataclass(frozen=True)
class PlannedMember:
    """One member with all that was decided for it."""

    index: int
    settings: Settings
    plan: Plan
    catalog: Catalog
    spec_text: str
    """YAML that submits the same again, alone."""


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep whose members are all possible."""

    record: SweepRecord
    document: Document
    """The user's YAML, `sweep:` included, with overrides applied and paths made absolute."""
    site: Site
    template: str | None
    runs: Path
    base: Path
    """Folder that paths of data are relative to."""
    values: dict[str, Any]
    """The spec without its sweep, as nested dicts."""
    warnings: list[str]
    experience: Experience | None
    """Of earlier runs, which decides the walltime; None once that is settled for the whole array."""
    search: bool = False
    """Further members follow, decided by how these do."""
    first: int = 0
    """Number of the first of these members."""
    catalog: Catalog | None = None
    """What earlier members of a search learn from, so that later ones learn from the same."""

    def members(self) -> Iterator[PlannedMember]:
        """Every member, decided one after another; those with the same pictures follow each other.

        Raises :class:`ErrorList` at the end, with every member that cannot be.
        """
        faults = Faults(self.record.members)
        texts = _SpecTexts(self.document)
        for indices in self._groups():
            own = _own_pictures(self.record.members[indices[0]])
            catalog = None if own or self.catalog is None else _KeyedCatalog.of(self.catalog)
            for index in indices:
                settings = self.record.members[index]
                with faults.of(index):
                    spec = Spec.model_validate(with_settings(self.values, settings))
                    catalog = catalog or _KeyedCatalog.of(make_catalog(spec.data, self.base, spec.task))
                    plan = decide(
                        spec, self.site, catalog, self.runs, template=self.template, experience=self.experience
                    )
                    if not faults:
                        yield PlannedMember(self.first + index, settings, plan, catalog, texts.of(settings))
        faults.throw()

    def _groups(self) -> list[list[int]]:
        """Members that see the same pictures."""
        groups: dict[str, list[int]] = {}
        for index, settings in enumerate(self.record.members):
            groups.setdefault(json.dumps(_own_pictures(settings), sort_keys=True), []).append(index)
        return list(groups.values())


class _SweepPart(BaseModel):
    """The sweep of a spec; everything else waits until it is known what the members are."""

    model_config = ConfigDict(extra="ignore")
    sweep: Sweep | None = None


def read_sweep(
    spec_file: Path, settings: Sequence[str] = (), axes: Sequence[str] = (), cap: int | None = None
) -> tuple[Document, Sweep | None]:
    """The document with overrides, and its sweep with ``--sweep`` options added; None if it has none."""
    document = read_document(spec_file)
    override(document, settings)
    sweep = validate(document, _SweepPart).sweep
    known = all_keys(Spec)
    if axes:
        sweep = _with_axes(sweep, axes, known)
        document.root["sweep"] = sweep.model_dump(mode="json", exclude_defaults=True)
    if sweep is None:
        return document, None
    if sweep.kind is None:
        raise UserError(
            "`sweep` names no settings",
            where=document.place(("sweep",)),
            remedy="Give it `grid`, `list`, `random`, `tpe` or `genetic`, or use --sweep key=value,….",
        )
    if cap is not None:
        sweep = sweep.model_copy(update={"cap": cap})
        document.root["sweep"]["cap"] = cap
    return document, sweep


def _with_axes(sweep: Sweep | None, axes: Sequence[str], known: Sequence[str]) -> Sweep:
    sweep = sweep or Sweep()
    if sweep.kind not in (None, "grid"):
        raise UserError(f"--sweep adds to a grid, and the spec has `sweep.{sweep.kind}`", remedy="Use one of the two.")
    given = read_axes(axes)
    grid: dict[str, Any] = {}
    for source in (sweep.grid or {}, given):
        grid.update(zip(full_keys(source, known), source.values()))
    return Sweep.model_validate({**sweep.model_dump(), "grid": grid})


def make_sweep(
    document: Document,
    sweep: Sweep,
    spec_file: Path,
    *,
    runs: Path,
    site: str | None = None,
    members: list[Settings] | None = None,
    first: int = 0,
    catalog: Catalog | None = None,
) -> PlannedSweep:
    """Expand a sweep and check every member; raises :class:`UserError` or a list of them with the members' numbers.

    For a later generation of a search ``members`` are its settings, ``first`` is the number of the first of them, and
    ``catalog`` that of the members before.
    """
    base = spec_file.absolute().parent
    if members is None:
        members = expand(sweep, all_keys(Spec))
    for settings in members:
        for key in settings:
            if key in (*PATHS, PRETRAINED) and isinstance(settings[key], str):
                settings[key] = pinned(key, settings[key], base, runs)
    make_paths_absolute(document.root, base, runs, document.place)
    values = plain(document)
    values.pop("sweep", None)
    _find_runs_before(values, runs)
    spec = validate_all(document, values, members)
    profile = _as_it_is(load_site(site))
    planned = PlannedSweep(
        record=_record(spec, sweep, profile, find_site(site), members),
        document=document,
        site=profile,
        template=own_template(find_site(site)),
        runs=runs,
        base=base,
        values=values,
        warnings=[],
        experience=Experience(runs, kinds_of_nodes(profile)),
        search=sweep.search is not None,
        first=first,
        catalog=catalog,
    )
    walltimes: set[int] = set()
    warnings: dict[str, int] = {}
    for member in planned.members():
        walltimes.add(member.plan.walltime_seconds)
        for warning in member.plan.warnings:
            warnings[warning] = warnings.get(warning, 0) + 1
    if len(walltimes) > 1:  # one array has one walltime: what the longest member needs
        values["job"] = {**(values.get("job") or {}), "walltime": format_duration(max(walltimes))}
        planned = dataclasses.replace(planned, experience=None)
    number = len(members)
    told = [text if count == number else f"{text} ({count} of {number} members)" for text, count in warnings.items()]
    return dataclasses.replace(planned, warnings=told)


def _as_it_is(site: Site) -> Site:
    """On this machine: what it has is asked once, not once for each member."""
    if site.scheduler != "local":
        return site
    nodes = {
        name: node.model_copy(
            update={
                "cores": node.cores or offered_cores(),
                "gpus": offered_gpus() if node.gpus is None else node.gpus,
            }
        )
        for name, node in (site.nodes or {"here": Node()}).items()
    }
    return site.model_copy(update={"nodes": nodes})


def _record(spec: Spec, sweep: Sweep, site: Site, profile: Path, members: list[Settings]) -> SweepRecord:
    dialect = (site.dialect or "select") if site.scheduler == "pbs" else None
    can = get_scheduler(site.scheduler, dialect).abilities
    queue = next((one for one in site.queues if one.name == spec.job.queue), site.queues[0])
    limits = [sweep.cap, queue.max_jobs]
    if not can.arrays:
        limits += [sweep.running] if any((sweep.cap, queue.max_jobs, sweep.running)) else [DEFAULT_CAP]
    return SweepRecord(
        sweep_id=secrets.token_hex(8),
        name=spec.name,
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        scheduler=site.scheduler,
        dialect=dialect,
        portion=site.max_array if can.arrays else 1,
        least_portion=max(2, can.least_array),
        cap=min((limit for limit in limits if limit is not None), default=None),
        running=sweep.running,
        hold=spec.job.hold,
        width=max(4, len(str(count_members(sweep) - 1))),
        site=str(profile.absolute()),
        most=count_members(sweep),
        members=members,
    )


# --- Members' specs as text -------------------------------------------------------------------------------------


class _SpecTexts:
    """Members' specs as YAML. Writing YAML with comments is slow, so it is written once with gaps to be filled."""

    def __init__(self, document: Document) -> None:
        self._root = copy.deepcopy(document.root)
        self._root.pop("sweep", None)
        self._path = document.path
        self._gap = secrets.token_hex(16)
        self._texts: dict[tuple[str, ...], list[tuple[str, str]]] = {}

    def of(self, settings: Settings) -> str:
        """The spec of a member: JSON is YAML, so any value may stand in a gap."""
        keys = tuple(settings)
        if keys not in self._texts:
            self._texts[keys] = self._pieces(keys)
        return "".join(
            before + (json.dumps(settings[key], ensure_ascii=False) if key else "") for before, key in self._texts[keys]
        )

    def _pieces(self, keys: tuple[str, ...]) -> list[tuple[str, str]]:
        """Text before each gap with the key that fills it; the last has none."""
        document = Document(self._path, copy.deepcopy(self._root), {})
        override(document, [f"{key}={self._gap}-{number}-" for number, key in enumerate(keys)])
        pieces: list[tuple[str, str]] = []
        before, *parts = document.text().split(f"{self._gap}-")
        for part in parts:
            number, _, after = part.partition("-")
            pieces.append((before, keys[int(number)]))
            before = after
        return [*pieces, (before, "")]


def _find_runs_before(values: dict[str, Any], runs: Path) -> None:
    """Runs of ``job.after`` as paths: looked for once, not once for each member."""
    job = values.get("job")
    after = job.get("after") if isinstance(job, dict) else None
    if isinstance(after, list) and all(isinstance(one, str) for one in after):
        values["job"] = {**values["job"], "after": [str(find_run(one, runs).path) for one in after]}


def _own_pictures(settings: Settings) -> Settings:
    """Those of a member's settings that decide which pictures it sees."""

    def decides(key: str) -> bool:
        group, _, rest = key.partition(".")
        return key == "task" or (group == "data" and rest.split(".")[0] in _CATALOG)

    return {key: value for key, value in settings.items() if decides(key)}


@dataclass(frozen=True)
class _KeyedCatalog(Catalog):
    """A catalogue that remembers its keys: reading all names again for every member would be slow."""

    _keys: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, catalog: Catalog) -> _KeyedCatalog:
        return cls(**vars(catalog))

    def key(self, data: Data) -> str:
        settings = data.model_dump_json(exclude={"split", *SOURCES} - {"table"})
        if settings not in self._keys:
            self._keys[settings] = super().key(data)
        return self._keys[settings]
