"""Building an environment: steps are skipped, repeated and continued as people expect. pip and compilers are fakes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlhpc.envs import build as building
from dlhpc.envs import horovod, venv, verify
from dlhpc.envs.commands import StepFailed
from dlhpc.envs.progress import Progress
from dlhpc.envs.recipe import HorovodPart, Patch, Recipe
from dlhpc.envs.record import read_record
from dlhpc.envs.system import Mpi
from dlhpc.errors import CommandError, UserError

MPI = Mpi("openmpi", "4.1.4", "/usr/bin/mpirun")
PATCH = Patch(file="CMakeLists.txt", find="STANDARD 14", replace="STANDARD {cxx_standard}")
PART = HorovodPart(version="0.28.1", patches=(PATCH,), requirements=("setuptools<80",))
RECIPE = Recipe(name="cpu", requirements=("torch==2.15.0",), horovod=PART)


class Quiet(Progress):
    """Collects instead of printing."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def python_at(prefix: Path) -> venv.Python:
    (prefix / "lib").mkdir(parents=True, exist_ok=True)
    (prefix / "pyvenv.cfg").touch()
    return venv.Python(
        prefix / "bin/python", "3.11.2", "cp311", str(prefix), prefix / "lib", Path("/usr/include"), "x86_64", "2.36"
    )


# the name of a wheel in the cache ---


@pytest.mark.parametrize(
    ("torch", "standard"),
    [("2.0.1", 14), ("2.1.0", 17), ("2.9.1+cpu", 17), ("2.10.0", 20), ("2.15.0", 20), ("3.0", 20)],
)
def test_the_cxx_standard_follows_torch(torch: str, standard: int) -> None:
    assert horovod.cxx_standard(torch) == standard


def test_a_wheel_belongs_to_one_python_torch_mpi_cuda_options_and_patches(tmp_path: Path) -> None:
    python = python_at(tmp_path)
    base = horovod.target_of(PART, python, "2.15.0", MPI)
    assert base.name.startswith("horovod-0.28.1-cp311-torch2.15.0-openmpi4.1.4-cpu-")
    assert base == horovod.target_of(PART, python, "2.15.0", MPI)
    others = [
        horovod.target_of(PART, replace(python, tag="cp312"), "2.15.0", MPI),
        horovod.target_of(PART, replace(python, libc="2.28"), "2.15.0", MPI),
        horovod.target_of(PART, python, "2.15.1", MPI),
        horovod.target_of(PART, python, "2.15.0", None),
        horovod.target_of(PART, python, "2.15.0", replace(MPI, version="5.0")),
        horovod.target_of(PART, python, "2.15.0", MPI, cuda="13.0", nccl="2.30"),
        horovod.target_of(PART, python, "2.15.0", MPI, cuda="13.0", nccl="2.31"),
        horovod.target_of(PART.model_copy(update={"options": {"HOROVOD_X": "1"}}), python, "2.15.0", MPI),
        horovod.target_of(PART.model_copy(update={"patches": ()}), python, "2.15.0", MPI),
    ]
    assert len({one.name for one in [base, *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("environment", "jobs"), [({"MAKEFLAGS": "-j7"}, 7), ({"MAKEFLAGS": "w -j9 --jobserver", "MAKELEVEL": "1"}, None)]
)
def test_the_users_makeflags_count_but_not_those_of_our_own_makefile(
    environment: dict[str, str], jobs: int | None
) -> None:
    found = horovod.compiler_jobs(environment)
    assert found == jobs if jobs else 1 <= found <= len(os.sched_getaffinity(0))


# sources ---


def archive_of(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def test_patches_are_applied_with_the_right_standard(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("set(STANDARD 14)\n${keep} {braces}\n")
    horovod.apply_patches(tmp_path, (PATCH,), 20)
    assert (tmp_path / "CMakeLists.txt").read_text() == "set(STANDARD 20)\n${keep} {braces}\n"


def test_a_patch_that_does_not_fit_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("set(STANDARD 17)\n")
    with pytest.raises(UserError, match=r"patch of `CMakeLists.txt` does not fit.*STANDARD 14"):
        horovod.apply_patches(tmp_path, (PATCH,), 20)
    with pytest.raises(UserError, match="no such file"):
        horovod.apply_patches(tmp_path, (PATCH.model_copy(update={"file": "gone.txt"}),), 20)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "horovod/../../evil"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", {"horovod/setup.py": "", name: "x"})
    with pytest.raises(UserError, match="unsafe path"):
        horovod.unpack(archive, tmp_path / "out")
    assert not (tmp_path.parent / "evil").exists()


# the wheel ---

FAKE_PIP = """\
#!{python}
import os, pathlib, sys, time, zipfile
state = pathlib.Path({state!r})
words = sys.argv[1:]
with open(state / "calls", "a") as calls:
    calls.write(words[2] + "\\n")
if words[2] == "download":
    folder = pathlib.Path(words[words.index("--dest") + 1])
    folder.mkdir()
    (folder / "horovod-0.28.1.tar.gz").write_bytes((state / "source.tar.gz").read_bytes())
if words[2] == "wheel":
    print("[ 50%] Building CXX object x/torch.cc.o", flush=True)
    source = pathlib.Path(words[-1])
    assert "STANDARD 20" in (source / "CMakeLists.txt").read_text()
    (source / "object.o").touch()
    if (state / "slow").exists():
        (state / "compiling").touch()
        time.sleep(float((state / "slow").read_text()))
    if (state / "broken").exists():
        sys.exit("torch.cc:1: error: broken")
    with zipfile.ZipFile(pathlib.Path(words[words.index("--wheel-dir") + 1]) / "horovod-0.28.1-py3.whl", "w") as wheel:
        wheel.writestr("torch.so", os.environ["MAKEFLAGS"] + os.environ.get("MAKELEVEL", ""))
"""


class Workshop:
    """A fake interpreter whose pip downloads and compiles a tiny Horovod, and a cache folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = folder / "state"
        self.prefix = folder / "prefix"
        self.cache = folder / "cache"
        self.state.mkdir()
        self.python = python_at(self.prefix)
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache))
        monkeypatch.setenv("MAKELEVEL", "1")
        archive_of(self.state / "source.tar.gz", {"horovod-0.28.1/CMakeLists.txt": "set(STANDARD 14)\n"})
        self.python.executable.parent.mkdir(parents=True)
        self.python.executable.write_text(FAKE_PIP.format(python=sys.executable, state=str(self.state)))
        self.python.executable.chmod(0o755)
        self.progress = Quiet()
        self.target = horovod.target_of(PART, self.python, "2.15.0", MPI)
        self.folder = self.cache / "dlhpc/wheels" / self.target.name

    def builder(self, part: HorovodPart = PART, check: Callable[[], None] = lambda: None) -> horovod.WheelBuilder:
        target = horovod.target_of(part, self.python, "2.15.0", MPI)
        log = self.prefix / "build.log"
        return horovod.WheelBuilder(part, target, self.python, {}, log, self.progress, check)

    def calls(self) -> list[str]:
        path = self.state / "calls"
        return path.read_text().split() if path.exists() else []

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.folder.parent.iterdir() if not path.name.endswith(".lock"))


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


def test_a_wheel_is_built_once_and_then_comes_from_the_cache(workshop: Workshop) -> None:
    wheel = workshop.builder().wheel()
    assert wheel.parent == workshop.folder
    assert workshop.builder().wheel() == wheel
    assert workshop.calls() == ["download", "wheel"]
    assert workshop.leftovers() == [workshop.target.name]
    assert zipfile.ZipFile(wheel).read("torch.so").startswith(b"-j"), "our own make must not steer the compiler"


def test_the_source_is_downloaded_once_for_all_wheels(workshop: Workshop) -> None:
    workshop.builder().wheel()
    workshop.builder(PART.model_copy(update={"options": {"HOROVOD_OTHER": "1"}})).wheel()
    assert workshop.calls() == ["download", "wheel", "wheel"]


def test_a_damaged_wheel_in_the_cache_is_built_anew(workshop: Workshop) -> None:
    wheel = workshop.builder().wheel()
    wheel.write_bytes(wheel.read_bytes()[:-1])
    assert zipfile.is_zipfile(workshop.builder().wheel())
    assert workshop.calls().count("wheel") == 2


def test_a_source_with_another_hash_is_never_compiled(workshop: Workshop) -> None:
    with pytest.raises(UserError, match="sha256"):
        workshop.builder(PART.model_copy(update={"sha256": "0" * 64})).wheel()
    assert workshop.calls() == ["download"]
    assert workshop.leftovers() == []
    assert list((workshop.cache / "dlhpc/sdists").iterdir()) == []


def test_a_failed_build_says_what_the_compiler_said_and_leaves_nothing(workshop: Workshop) -> None:
    (workshop.state / "broken").touch()
    with pytest.raises(StepFailed, match=r"torch\.cc:1: error: broken"):
        workshop.builder().wheel()
    assert workshop.leftovers() == []
    (workshop.state / "broken").unlink()
    workshop.builder().wheel()


def test_a_missing_compiler_is_told_before_anything_is_downloaded(workshop: Workshop) -> None:
    def check() -> None:
        raise CommandError("building needs a C++ compiler")

    with pytest.raises(CommandError, match="needs a C"):
        workshop.builder(check=check).wheel()
    assert workshop.calls() == []


BUILD_IN_ANOTHER_PROCESS = """
import os, sys
from pathlib import Path
import pytest
sys.path.insert(0, {tests!r})
from test_envs_build import Workshop, PART
from dlhpc.envs import horovod
from test_envs_build import MPI, Quiet, python_at
python = python_at(Path({prefix!r}))
progress = Quiet()
target = horovod.target_of(PART, python, "2.15.0", MPI)
print(horovod.WheelBuilder(PART, target, python, {{}}, Path({prefix!r}) / "log2", progress, lambda: None).wheel())
print(*progress.lines, sep="\\n")
"""


def another_process(workshop: Workshop) -> subprocess.Popen[str]:
    code = BUILD_IN_ANOTHER_PROCESS.format(tests=str(Path(__file__).parent), prefix=str(workshop.prefix))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_until_compiling(workshop: Workshop) -> None:
    import time

    end = time.monotonic() + 20
    while not (workshop.state / "compiling").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_builds_at_once_compile_once_and_the_second_says_that_it_waits(workshop: Workshop) -> None:
    (workshop.state / "slow").write_text("1.5")
    with another_process(workshop) as first:
        wait_until_compiling(workshop)
        wheel = workshop.builder().wheel()
        said, _ = first.communicate(timeout=30)
    assert said.split()[0] == str(wheel)
    assert workshop.calls() == ["download", "wheel"]
    assert any("another build" in line for line in workshop.progress.lines)


def test_compiling_continues_after_the_builder_was_killed(workshop: Workshop) -> None:
    (workshop.state / "slow").write_text("2")
    with another_process(workshop) as killed:
        wait_until_compiling(workshop)
        killed.kill()
    assert horovod.cached_wheel(workshop.folder) is None
    (workshop.state / "slow").unlink()
    work = workshop.folder.with_name(f".{workshop.target.name}.building")
    assert (work / "source/object.o").exists()
    stayed = (work / "source/object.o").stat().st_ino
    seen: list[int] = []
    builder = workshop.builder(check=lambda: seen.append((work / "source/object.o").stat().st_ino))
    assert zipfile.is_zipfile(builder.wheel())
    assert seen == [stayed]
    assert workshop.calls() == ["download", "wheel", "wheel"]
    assert workshop.leftovers() == [workshop.target.name]


def test_sources_that_were_cut_while_being_patched_are_unpacked_anew(workshop: Workshop) -> None:
    work = workshop.folder.with_name(f".{workshop.target.name}.building")
    (work / "source").mkdir(parents=True)
    (work / "source/CMakeLists.txt").write_text("set(STANDARD 20)\n")  # patched already, but not known to be whole
    (work / "source.unpacking").mkdir()
    assert zipfile.is_zipfile(workshop.builder().wheel())


# the whole build ---


class Site:
    """A machine in fakes: what pip was asked to install, and whether an MPI is there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prefix = folder / "env"
        self.python = python_at(self.prefix)
        self.installed: list[list[str]] = []
        self.verified: list[Mpi | None] = []
        self.mpi: Mpi | None = MPI
        self.fails_at: str | None = None
        self.needs: dict[str, str] = {}
        monkeypatch.setattr(building, "ensure_venv", lambda prefix, **_: self.python)
        monkeypatch.setattr(building, "find_mpi", lambda: self.mpi)
        monkeypatch.setattr(building, "may_install", lambda: False)
        monkeypatch.setattr(building, "stream", self._stream)
        monkeypatch.setattr(building, "verify", self._verify)
        monkeypatch.setattr(building, "requirements_of_extra", lambda extra: [f"{extra}-tool>=1"])
        monkeypatch.setattr(sys, "prefix", str(self.prefix))
        monkeypatch.setattr(horovod.WheelBuilder, "wheel", lambda _: Path("/cache/horovod-0.28.1-py3.whl"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def _stream(self, argv: list[str | Path], **_: object) -> list[str]:
        words = [str(word) for word in argv][4:]
        wanted = [word for word in words if not word.startswith("-") and word != "off"]
        if self.fails_at is not None and any(self.fails_at in word for word in wanted):
            raise KeyboardInterrupt
        self.installed.append(wanted)
        for word in wanted:
            name = Path(word).name.split("-")[0] if word.endswith(".whl") else word
            name, _, version = name.partition("==")
            name = name.split(">")[0].split("<")[0]
            self.put(name, version or ("0.28.1" if name == "horovod" else "1"))
        return []

    def put(self, name: str, version: str) -> None:
        for old in (self.prefix / "lib").glob(f"{name.replace('-', '_')}-*.dist-info"):
            (old / "INSTALLER").unlink()
            old.rmdir()
        folder = self.prefix / "lib" / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "INSTALLER").touch()

    def _verify(self, python: venv.Python, mpi: Mpi | None, variables: dict[str, str], **_: object) -> dict[str, str]:
        self.verified.append(mpi)
        return self.needs

    def build(self, recipe: Recipe = RECIPE, *extras: str) -> Quiet:
        self.installed.clear()
        self.verified.clear()
        progress = Quiet()
        self.record = building.build(recipe, self.prefix, progress, extras)
        return progress


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_a_finished_build_is_skipped_silently(site: Site) -> None:
    site.build()
    assert site.installed[0] == ["report-tool>=1", "search-tool>=1", "setuptools<80", "torch==2.15.0", "train-tool>=1"]
    assert site.verified == [MPI]
    first = site.record
    assert read_record(site.prefix) == first
    assert (first.torch, first.horovod, first.recipe_hash) == ("2.15.0", "0.28.1", RECIPE.hash())
    assert site.build().lines == []
    assert site.installed == site.verified == []
    assert site.record == first


def test_an_interrupted_build_continues_with_the_step_that_was_cut(site: Site) -> None:
    site.fails_at = "horovod"
    with pytest.raises(KeyboardInterrupt):
        site.build()
    assert read_record(site.prefix) is None
    site.fails_at = None
    site.build()
    assert [wanted[0] for wanted in site.installed] == ["/cache/horovod-0.28.1-py3.whl"]
    assert read_record(site.prefix) == site.record


def test_an_unverified_environment_has_no_record(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> dict[str, str]:
        raise CommandError("the ranks did not meet")

    with monkeypatch.context() as patched:
        patched.setattr(building, "verify", fails)
        with pytest.raises(CommandError, match="did not meet"):
            site.build()
    assert read_record(site.prefix) is None
    site.build()
    assert site.installed == []
    assert site.verified == [MPI]


def test_another_torch_means_another_horovod_and_a_new_check(site: Site) -> None:
    site.build()
    site.build(RECIPE.model_copy(update={"requirements": ("torch==2.16.0",)}))
    assert [wanted[-1] for wanted in site.installed] == ["train-tool>=1", "/cache/horovod-0.28.1-py3.whl"]
    assert site.verified == [MPI]
    assert site.record.torch == "2.16.0"


def test_a_package_that_somebody_changed_by_hand_is_put_right(site: Site) -> None:
    site.build()
    site.put("torch", "2.14.0")
    site.build()
    assert site.record.torch == "2.15.0"
    assert "torch==2.15.0" in site.installed[0]


def test_an_mpi_that_appears_later_is_used(site: Site) -> None:
    site.mpi = None
    lines = site.build().lines
    assert [line for line in lines if "Gloo" in line and line.startswith("There is no MPI here")]
    assert site.record.mpi is None
    assert site.record.gloo
    site.mpi = MPI
    site.build()
    assert site.record.mpi is not None
    assert site.record.mpi.mpirun == "/usr/bin/mpirun"
    assert site.verified == [MPI]


def test_a_recipe_may_insist_on_mpi(site: Site) -> None:
    site.mpi = None
    wish = RECIPE.mpi.model_copy(update={"use": "required", "apt": ("openmpi-bin",)})
    with pytest.raises(CommandError, match=r"needs an MPI[\s\S]*openmpi-bin"):
        site.build(RECIPE.model_copy(update={"mpi": wish}))


def test_without_a_compiler_the_error_says_what_to_ask_for(site: Site) -> None:
    recipe = Recipe.model_validate(
        {
            **RECIPE.model_dump(),
            "system": [{"what": "a C++ compiler (g++)", "command": "no-such-compiler", "apt": ["g++"]}],
        }
    )
    with pytest.raises(CommandError, match=r"C\+\+ compiler[\s\S]*apt-get install g\+\+"):
        site.build(recipe)
    assert site.installed == []


def test_extras_are_installed_beside_and_kept(site: Site) -> None:
    site.build()
    site.build(RECIPE, "test")
    assert site.installed == [["test-tool>=1"]]
    site.build(RECIPE, "test")
    assert site.installed == site.verified == []
    site.build()
    assert site.installed == site.verified == []


WITH_SLURM = Recipe.model_validate(
    {
        **RECIPE.model_dump(),
        "extras": {"test": [{"what": "Slurm", "command": "no-such-slurmctld", "apt": ["slurm-wlm"]}]},
    }
)


def test_what_an_extra_needs_from_the_machine_is_installed_by_root(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(building, "may_install", lambda: True)
    monkeypatch.setattr(building, "apt_install", lambda names, **_: asked.append(list(names)))
    site.build(WITH_SLURM)
    assert asked == []
    site.build(WITH_SLURM, "test")
    assert asked == [["slurm-wlm"]]


def test_who_is_not_root_is_told_what_an_extra_goes_without(site: Site) -> None:
    told = [line for line in site.build(WITH_SLURM, "test").lines if "without" in line]
    assert told == ["Going on without Slurm; as root on Debian: apt-get install slurm-wlm"]
    assert ["test-tool>=1"] in site.installed


def test_a_build_tool_from_pip_helps_those_who_are_not_root(site: Site) -> None:
    part = {"what": "CMake", "command": "no-such-cmake", "apt": ["cmake"], "pip": "cmake"}
    recipe = Recipe.model_validate({**RECIPE.model_dump(), "system": [part]})
    site.build(recipe)
    assert site.installed[0] == ["cmake"]
    site.build(recipe)
    assert site.installed == site.verified == []


def test_what_verification_found_is_in_the_record_for_jobs(site: Site) -> None:
    site.needs = {"OMPI_MCA_x": "none"}
    recipe = RECIPE.model_copy(update={"environment": {"OMP_NUM_THREADS": "1"}})
    site.build(recipe)
    assert site.record.environment == {"OMP_NUM_THREADS": "1", "OMPI_MCA_x": "none"}
    site.build(recipe)
    assert site.record.environment == {"OMP_NUM_THREADS": "1", "OMPI_MCA_x": "none"}


def test_a_python_that_is_too_old_for_the_recipe_is_refused(site: Site) -> None:
    with pytest.raises(UserError, match=r"needs Python 3\.13"):
        site.build(RECIPE.model_copy(update={"python": "3.13"}))


def test_horovod_that_vanished_is_installed_again(site: Site) -> None:
    site.build()
    (site.prefix / "lib/horovod-0.28.1.dist-info/INSTALLER").unlink()
    (site.prefix / "lib/horovod-0.28.1.dist-info").rmdir()
    site.build()
    assert site.installed == [["/cache/horovod-0.28.1-py3.whl"]]
    assert site.record.horovod == "0.28.1"


# the check at the end ---

PROBE = """\
#!/bin/sh
if [ "$OMPI_MCA_btl_vader_single_copy_mechanism" != none ] && [ -e {folder}/forbidden ]; then
    echo '[host] Read -1, expected 4000000, errno = 1'
fi
echo '[1,0]<stdout>:dlhpc-probe {{"ranks": {ranks}, "mpi_built": true, "gloo_built": true}}'
"""


def verified(folder: Path, ranks: int, mpi: bool = True) -> tuple[dict[str, str], Quiet]:
    launcher = folder / ("bin/mpirun" if mpi else "bin/horovodrun")
    launcher.parent.mkdir(exist_ok=True)
    launcher.write_text(PROBE.format(folder=folder, ranks=ranks))
    launcher.chmod(0o755)
    progress = Quiet()
    found = Mpi("openmpi", "4.1.4", str(launcher)) if mpi else None
    return verify.verify(python_at(folder), found, {}, log=folder / "log", progress=progress), progress


@pytest.mark.parametrize("mpi", [True, False])
def test_two_ranks_that_met_need_nothing_more(tmp_path: Path, mpi: bool) -> None:
    assert verified(tmp_path, 2, mpi)[0] == {}


def test_a_container_that_forbids_copying_is_noticed_and_worked_around(tmp_path: Path) -> None:
    (tmp_path / "forbidden").touch()
    needs, progress = verified(tmp_path, 2)
    assert needs == {"OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
    assert len(progress.lines) == 1


def test_a_launcher_of_another_mpi_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"1 rank\(s\) instead of 2[\s\S]*another MPI"):
        verified(tmp_path, 1)


# packaging ---


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_the_folders_that_ship_with_it(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    tracked = ["dlhpc", "site", "jobtemplates", "setup.py", "setup.cfg", "pyproject.toml", "README.md"]
    copy = tmp_path / "tree"
    copy.mkdir()
    subprocess.run(
        ["cp", "-r", *[str(root / name) for name in tracked if (root / name).exists()], str(copy)], check=True
    )
    code = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("dlhpc-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    code_files = {str(path.relative_to(root)) for path in (root / "dlhpc").rglob("*.py")}
    shipped = {
        f"dlhpc/{path.relative_to(root)}"
        for folder in ("site", "jobtemplates")
        for path in (root / folder).rglob("*")
        if path.is_file()
    }
    assert code_files | shipped | {"dlhpc/py.typed"} <= held
    assert shipped
    used = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(wheel)!r})
        import dlhpc.resources
        print(dlhpc.resources.__file__)
        """
    )
    assert str(wheel) in subprocess.run([sys.executable, "-c", used], capture_output=True, text=True, check=True).stdout
