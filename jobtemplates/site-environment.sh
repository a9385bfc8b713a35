# What a software environment looks like from here. `dlhpc site check` runs it with sh on the login node and in a job.
# Arguments: module_init or '', python, launcher or '', modules …     Answers are the lines that begin with `dlhpc:`.
# POSIX sh, run by dash, bash and ksh88 alike.
init=$1
python=$2
launcher=$3
shift 3

if [ $# -gt 0 ]; then
    modules=$*
    if [ -n "$init" ]; then
        set -- "$init"
    else # where job scripts look for it, in their order
        set -- /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /usr/share/modules/init/sh /usr/share/lmod/lmod/init/sh
    fi
    for file in "$@"; do
        # shellcheck disable=SC1090  # which one there is depends on the machine
        if ! type module > /dev/null 2>&1 && [ -r "$file" ]; then . "$file"; fi
    done
    for name in $modules; do # their names hold no blanks
        module load "$name"
        case ":${LOADEDMODULES:-}:" in
            *":$name:"* | *":$name/"*) printf 'dlhpc:module %s yes\n' "$name" ;;
            *) printf 'dlhpc:module %s no\n' "$name" ;;
        esac
    done
fi

if [ ! -x "$python" ]; then
    printf 'dlhpc:python missing\n'
elif said=$("$python" -c 'import importlib.util as u, sys
there = [name for name in ("dlhpc", "torch", "horovod") if u.find_spec(name)]
print(".".join(map(str, sys.version_info[:3])), *there)'); then
    printf 'dlhpc:python runs %s\n' "$said"
else
    printf 'dlhpc:python fails\n'
fi

if [ -n "$launcher" ]; then
    PATH=${python%/*}:$PATH
    if found=$(command -v "$launcher"); then
        printf 'dlhpc:launcher yes %s\n' "$found"
    else
        printf 'dlhpc:launcher no\n'
    fi
fi
