"""A PATH as on a machine without GNU: POSIX utilities only, and only with POSIX options."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

# The utilities of POSIX that busybox has. Not here, on purpose: readlink, realpath, mktemp, seq, stat, timeout, tac.
UTILITIES = (  # noqa: SIM905  # a long list reads better so
    "ar awk basename bc cal cat chgrp chmod chown cmp comm cp cut date dd df diff dirname du echo ed env expand expr "
    "false find fold getconf grep head hostname iconv id join kill ln logname ls mesg mkdir mkfifo more mv nice nl "
    "nohup od paste patch pathchk pr printf ps pwd renice rm rmdir sed sleep sort split strings stty tail tee test "
    "time touch tr true tty uname unexpand uniq uudecode uuencode wc who xargs [ uncompress"
).split()

# Options that GNU's tools or busybox know and POSIX does not; people's scripts use these.
_FOREIGN = {
    "sed": "-i*|-r|-E|-z",
    "grep": "-P*|-o|-A*|-B*|-C*|-r|-R|-w|-a",
    "date": "-d*|-I*|-R|-s*|-r*|+*%N*|+*%s*",
    "ls": "-h|-lh|-v",
    "cp": "-a|-t*|-u|-d",
    "ln": "-r*|-t*|-n*|-sfn|-sr",
    "du": "-h|-sh|-b|-sb",
    "df": "-h",
    "head": "-c*",
    "find": "-maxdepth|-mindepth|-printf|-delete|-iname|-print0|-quit",
    "xargs": "-0|-r|-d*|-P*",
    "sort": "-V|-R|-h|-z",
    "mkdir": "-v",
    "rm": "-v",
    "mv": "-T|-t*|-n|-v",
    "tail": "--*|-F",
    "touch": "-d*",
    "uname": "-o|-p|-i",
    "id": "-Z",
    "hostname": "-I|-A|-f",
    "printf": "--version",
    "nice": "--*",
    "env": "-u*|-S*|-C*|-0",
}

_WRAPPER = """#!/bin/sh
for word do
  case $word in
    {foreign}) echo "{name}: illegal option -- $word" >&2; exit 2 ;;
  esac
done
exec {busybox} {name} "$@"
"""


def build_posix_path(folder: Path, python: str) -> None:
    """Fill ``folder`` with POSIX utilities (busybox) that refuse what is not POSIX, and with ``python3``."""
    folder.mkdir(exist_ok=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("a PATH of POSIX tools needs busybox; on Debian: apt-get install busybox")
    there = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in [name for name in UTILITIES if name in there]:
        program = folder / name
        foreign = "--?*" if name not in _FOREIGN else f"--?*|{_FOREIGN[name]}"
        if name in ("echo", "test", "[", "printf", "expr", "awk", "kill", "true", "false"):
            if not program.exists():
                os.symlink(busybox, program)
            continue
        program.write_text(_WRAPPER.format(foreign=foreign, name=name, busybox=busybox), encoding="utf-8")
        program.chmod(0o755)
    for name in ("python3", "python"):
        if not (folder / name).exists():
            os.symlink(python, folder / name)
    if not (folder / "sh").exists():
        os.symlink("/bin/sh", folder / "sh")
