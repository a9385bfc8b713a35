"""Finding and loading site profiles: a name from `site/`, from DLHPC_SITE_PATH, or a file."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlhpc import resources
from dlhpc.errors import Place, UserError

if TYPE_CHECKING:
    from dlhpc.sites.models import Site

DEFAULT_SITE = "local"


def site_folders() -> list[Path]:
    """Where profiles are looked for: the centre's own folders (DLHPC_SITE_PATH) lie over the shipped ones."""
    own = [Path(part).expanduser() for part in os.environ.get("DLHPC_SITE_PATH", "").split(os.pathsep) if part]
    return [*own, resources.folder("site")]


def site_files() -> dict[str, Path]:
    """Every profile that can be named, name → file."""
    found: dict[str, Path] = {}
    for folder in reversed(site_folders()):
        for file in sorted(folder.glob("*.yaml")):
            found[file.stem] = file
    return found


def find_site(named: str | None) -> Path:
    """The profile's file for ``--site`` (or DLHPC_SITE, or the default); :class:`UserError` if there is none."""
    name = named or os.environ.get("DLHPC_SITE") or DEFAULT_SITE
    if os.sep in name or name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.exists():
            raise UserError("there is no such site profile", where=path, remedy="Check the path.")
        return path
    files = site_files()
    if name not in files:
        near = difflib.get_close_matches(name, files, n=1)
        remedy = f"Did you mean `{near[0]}`? " if near else ""
        raise UserError(f"there is no site `{name}`", remedy=f"{remedy}Known: {', '.join(sorted(files))}.")
    return files[name]


def load_site(named: str | None = None) -> Site:
    """The checked profile for ``--site``."""
    from dlhpc.sites.models import Site
    from dlhpc.spec.load import read_document, validate

    return validate(read_document(find_site(named)), Site)


def runs_folder(given: str | None = None, site: str | None = None) -> Path:
    """The folder of runs: ``--runs``, else DLHPC_RUNS, else the site's; absolute, perhaps not existing yet.

    Reads no more of the profile than that one line, so that `dlhpc status` needs no models.
    """
    folder = given or os.environ.get("DLHPC_RUNS") or _runs_of_site(site)
    return Path(os.path.expandvars(folder)).expanduser().absolute()


def _runs_of_site(site: str | None) -> str:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = find_site(site)
    try:
        profile: Any = YAML(typ="safe", pure=True).load(path.read_bytes())
        runs = (profile.get("paths") or {}).get("runs", "~/dlhpc-runs")
        if isinstance(runs, str) and runs:
            return runs
        what, line = "`paths.runs` must be the name of a folder", None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what, line = f"is not valid YAML: {getattr(error, 'problem', None) or error}", mark and mark.line + 1
    except AttributeError:
        what, line = "the profile and its `paths` must hold `key: value` lines", None
    except (OSError, ValueError, RecursionError) as error:
        what, line = f"cannot be read: {error}", None
    raise UserError(what, where=Place(str(path), line), remedy="Mend the profile, or name the folder with --runs.")
