"""The tools under a build: locks, stamps, commands, apt, virtual environments. Interruption is the normal case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from dlhpc.envs import bootstrap, system, venv
from dlhpc.envs import build as building
from dlhpc.envs.commands import StepFailed, stream
from dlhpc.envs.progress import LiveProgress, Progress, pip_news
from dlhpc.envs.recipe import Recipe
from dlhpc.envs.state import Stamps, key_of, locked
from dlhpc.errors import UserError


class Quiet(Progress):
    """Collects instead of printing."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip())
    path.chmod(0o755)
    return path


# stamps and locks ---


def test_a_key_depends_on_values_and_not_on_order() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})


def test_a_stamp_is_found_only_with_its_key_and_a_damaged_one_counts_as_none(tmp_path: Path) -> None:
    stamps = Stamps(tmp_path)
    assert stamps.found("pip", "k") is None
    stamps.put("pip", "k", versions={"torch": "1"})
    assert stamps.found("pip", "k") == {"versions": {"torch": "1"}}
    assert stamps.found("pip", "other") is None
    (tmp_path / ".dlhpc/steps/pip.json").write_text('{"key": "k"')
    assert stamps.found("pip", "k") is None


def test_the_second_of_two_builds_waits_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    order: list[str] = []
    said = threading.Event()

    def second() -> None:
        with locked(path, said.set):
            order.append("second")

    with locked(path, lambda: order.append("must not wait")):
        thread = threading.Thread(target=second)
        thread.start()
        assert said.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"""
        import time
        from pathlib import Path
        from dlhpc.envs.state import locked
        with locked(Path({str(path)!r}), lambda: None):
            print("held", flush=True)
            time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGKILL)
    with locked(path, lambda: pytest.fail("nobody holds it any more")):
        pass


# commands ---


def test_a_failed_command_shows_its_first_error_its_last_words_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    program = script(
        tmp_path / "compile",
        """
        #!/bin/sh
        echo 'file.cc:3: error: no such header'
        for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo "line $i" >&2; done
        exit 3
        """,
    )
    with pytest.raises(StepFailed) as caught:
        stream([program], log=log, remedy="Look at the log.")
    text = str(caught.value)
    assert "ended with code 3" in text
    assert "no such header" in text
    assert "line 12" in text
    assert "line 2" not in text.replace("line 12", "")
    assert str(log) in text
    assert "Look at the log." in text
    assert "line 1\n" in log.read_text()


def test_a_full_disk_is_recognised_in_what_a_command_says(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="Free some space"):
        stream(["sh", "-c", "echo 'No space left on device'; exit 1"], log=tmp_path / "log", remedy="?")


def test_a_missing_command_is_a_kind_error(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="cannot be run"):
        stream([tmp_path / "nothing"], log=tmp_path / "log", remedy="Install it.")


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(StepFailed, match="did not end within"):
        stream(["sh", "-c", f"sleep 600 & echo $! > {pid}; wait"], log=tmp_path / "log", remedy="?", timeout=1, grace=1)
    wait_for(lambda: not running(int(pid.read_text())))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_build_leaves_no_compiler_running(tmp_path: Path, number: signal.Signals) -> None:
    pid = tmp_path / "pid"
    code = f"""
        import signal
        from pathlib import Path
        from dlhpc.envs.commands import stream
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
        try:
            stream(["sh", "-c", "sleep 600 & echo $! > {pid}.x; mv {pid}.x {pid}; wait"],
                   log=Path({str(tmp_path / "log")!r}), remedy="?", grace=2)
        except KeyboardInterrupt:
            raise SystemExit(130)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]) as build:
        wait_for(pid.exists)
        build.send_signal(number)
        assert build.wait(30) == 130
    wait_for(lambda: not running(int(pid.read_text())))


def running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


# the machine ---


@pytest.mark.parametrize(
    ("banner", "tag"),
    [
        ("mpirun (Open MPI) 4.1.4\n\nReport bugs to …", "openmpi4.1.4"),
        ("mpirun (Open MPI) v5.0.3", "openmpi5.0.3"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.8 Build 2022", "intelmpi2021.8"),
        ("HYDRA build details:\n    Version:                                 4.0.2\n", "mpich4.0.2"),
        ("something else", "mpiunknown"),
    ],
)
def test_mpi_implementations_are_told_apart(banner: str, tag: str) -> None:
    assert system.mpi_from_banner(banner, "/usr/bin/mpirun").tag == tag


def test_an_mpi_without_its_compiler_cannot_be_built_against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "mpirun", "#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert system.find_mpi() is None
    script(tmp_path / "mpicxx", "#!/bin/sh\n")
    found = system.find_mpi()
    assert found is not None
    assert found.launch(2)[:3] == [str(tmp_path / "mpirun"), "-np", "2"]


def fake_apt(folder: Path, monkeypatch: pytest.MonkeyPatch, install: str) -> Path:
    """An apt-get and dpkg that note how they were called; ``install`` is what `apt-get install` does."""
    notes = folder / "notes"
    script(folder / "bin/dpkg", f'#!/bin/sh\necho "dpkg $*" >> {notes}\n')
    script(
        folder / "bin/apt-get",
        f'#!/bin/sh\necho "$1 $DEBIAN_FRONTEND" >> {notes}\n[ "$1" = update ] && touch {folder}/updated\n'
        f'[ "$1" = install ] && {{ {install}\n}}\nexit 0\n',
    )
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(system, "_APT_LISTS", folder / "lists")
    return notes


def test_a_fresh_machine_fetches_package_lists_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = fake_apt(tmp_path, monkeypatch, "true")
    system.apt_install(["g++"], log=tmp_path / "log", progress=Quiet())
    assert notes.read_text().splitlines() == ["dpkg --configure -a", "update noninteractive", "install noninteractive"]


def test_lists_that_are_too_old_are_fetched_when_installing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = fake_apt(tmp_path, monkeypatch, f"[ -e {tmp_path}/updated ] || exit 100")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "debian_main_Packages").touch()
    system.apt_install(["g++"], log=tmp_path / "log", progress=Quiet())
    assert [line.split()[0] for line in notes.read_text().splitlines()] == ["dpkg", "install", "update", "install"]


def test_when_apt_fails_for_good_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apt(tmp_path, monkeypatch, "echo 'E: no network'; exit 100")
    with pytest.raises(StepFailed, match=r"no network[\s\S]*apt-get install g\+\+ cmake"):
        system.apt_install(["g++", "cmake"], log=tmp_path / "log", progress=Quiet())


# virtual environments ---


def fake_python(prefix: Path, version: str = "3.11.2") -> None:
    """Something that answers as an environment's interpreter does."""
    said = {
        "version": version,
        "tag": "cp311",
        "prefix": str(prefix),
        "site_packages": str(prefix / "lib"),
        "machine": "x86_64",
        "headers": "/usr/include",
        "libc": "2.36",
    }
    script(prefix / "bin/python", f"#!/bin/sh\ncat <<'E'\n{json.dumps(said)}\nE\n")


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the making of environments by a fake that notes where; gives the notes."""
    made: list[Path] = []

    def fake_stream(argv: list[str | Path], **_: object) -> list[str]:
        made.append(Path(argv[-1]))
        fake_python(Path(argv[-1]))
        return []

    monkeypatch.setattr(venv, "stream", fake_stream)
    return made


def ensured(prefix: Path) -> venv.Python:
    (prefix / ".dlhpc").mkdir(parents=True, exist_ok=True)
    return venv.ensure_venv(prefix, log=prefix / ".dlhpc/build.log", progress=Quiet())


def test_an_environment_is_made_once(tmp_path: Path, making: list[Path]) -> None:
    prefix = tmp_path / ".venv"
    assert ensured(prefix).version == "3.11.2"
    ensured(prefix)
    assert making == [prefix]


def test_one_that_was_cut_while_being_made_is_made_anew(
    tmp_path: Path, making: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / ".venv"

    def cut(argv: list[str | Path], **_: object) -> list[str]:
        fake_python(Path(argv[-1]))  # it even answers, but pip may be missing half its files
        (Path(argv[-1]) / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(venv, "stream", cut)
        with pytest.raises(KeyboardInterrupt):
            ensured(prefix)
    Stamps(prefix).put("requirements", "k")
    ensured(prefix)
    assert making == [prefix]
    assert not (prefix / "half").exists()
    assert Stamps(prefix).found("requirements", "k") is None


def test_the_users_own_working_environment_is_taken_as_it_is(tmp_path: Path, making: list[Path]) -> None:
    prefix = tmp_path / "mine"
    fake_python(prefix)
    ensured(prefix)
    assert making == []


def test_a_folder_that_is_no_environment_is_never_touched(tmp_path: Path, making: list[Path]) -> None:
    prefix = tmp_path / "photos"
    prefix.mkdir()
    (prefix / "me.png").touch()
    with pytest.raises(UserError, match="holds other files"):
        building.build(Recipe(name="x", requirements=("torch==2.15.0",)), prefix, Quiet())
    with pytest.raises(UserError, match="holds other files"):
        bootstrap.bootstrap(tmp_path, prefix, Quiet())
    assert os.listdir(prefix) == ["me.png"]
    assert making == []


def test_the_users_own_broken_environment_is_theirs_to_remove(tmp_path: Path, making: list[Path]) -> None:
    (tmp_path / "pyvenv.cfg").touch()
    with pytest.raises(UserError, match="no working Python environment"):
        ensured(tmp_path)
    assert (tmp_path / "pyvenv.cfg").exists()
    assert making == []


def test_an_environment_of_an_old_python_is_refused(tmp_path: Path, making: list[Path]) -> None:
    fake_python(tmp_path / "old", "3.9.2")
    with pytest.raises(UserError, match=r"Python 3\.9\.2"):
        ensured(tmp_path / "old")


def test_a_copied_environment_of_ours_is_made_anew(tmp_path: Path, making: list[Path]) -> None:
    ensured(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    script(tmp_path / "b/bin/pip", f"#!{tmp_path}/a/bin/python\n")
    ensured(tmp_path / "b")
    assert making == [tmp_path / "a", tmp_path / "b"]


def test_a_distribution_that_was_cut_while_being_installed_does_not_count(tmp_path: Path) -> None:
    for name, whole in (("torch-2.15.0", False), ("ruamel_yaml-0.19.1", True)):
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").touch()
        if whole:
            (folder / "INSTALLER").write_text("pip\n")
    assert venv.installed(tmp_path) == {"ruamel-yaml": "0.19.1"}
    assert venv.remove_cut_installations(tmp_path) == ["torch-2.15.0.dist-info"]
    assert os.listdir(tmp_path) == ["ruamel_yaml-0.19.1.dist-info"]


# what people see ---


def test_a_log_gets_one_line_at_the_start_and_the_end_of_a_short_step(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.step("Python packages")
    progress.detail("Collecting torch")
    progress.done()
    assert capsys.readouterr().err.splitlines() == ["… Python packages", "✓ Python packages (0:00)"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Installing collected packages: a, b, torch", "installing 3 packages"),
        ("  Downloading torch-2.15.0.whl (539.1 MB)", "Downloading torch-2.15.0.whl (539.1 MB)"),
        ("      Successfully uninstalled setuptools-66.1.1", None),
        ("", None),
    ],
)
def test_of_what_pip_says_only_the_news_is_shown(line: str, shown: str | None) -> None:
    assert pip_news(line) == shown


def test_the_live_line_shows_percent_and_takes_any_text() -> None:
    from io import StringIO

    from rich.console import Console

    screen = StringIO()
    progress = LiveProgress(Console(file=screen, force_terminal=True, width=100))
    progress.step("Horovod")
    progress.detail("Building [bold]x[/nonsense].cc", 0.45)
    progress.note("[1/2] said [/]")
    time.sleep(0.2)
    progress.done()
    shown = screen.getvalue()
    assert "45%" in shown
    assert "[1/2] said [/]" in shown
    assert "✓ Horovod" in shown
