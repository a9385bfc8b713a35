# What `dlhpc site check` wants to know from a compute node. POSIX sh, run by dash, bash and ksh88 alike.
# Arguments: folder of the check, scheduler, scratch folder or ''.  Answers: one `name value` line each.
folder=$1
scheduler=$2
scratch=$3
exec > "$folder/answer.tmp" || exit 1

printf 'host %s\n' "$(uname -n)"
printf 'gpus %s\n' "$(nvidia-smi -L 2> /dev/null | grep -c '^GPU ')"
printf 'gpu %s\n' "$(nvidia-smi -L 2> /dev/null | sed -n 's/^GPU [0-9]*: \(.*\) (UUID.*$/\1/p' | sed 1q)"
printf 'visible %s\n' "${CUDA_VISIBLE_DEVICES:-}"

if [ -n "$scratch" ]; then
    own=$scratch/.dlhpc-site-check-$$
    written=no
    if mkdir -p "$scratch" 2> /dev/null && mkdir "$own" 2> /dev/null; then
        printf 'x\n' > "$own/x" && written=yes
        rm -rf "$own"
    fi
    printf 'scratch %s %s\n' "$written" "$scratch"
fi

# A held job proves that jobs may submit jobs; it never runs, and is cancelled at once (and looked for once more from the
# login node). Slurm can say so without one.
case $scheduler in
    slurm) said=$(sbatch --test-only "$folder/inner.sh" 2>&1) ;;
    pbs) said=$(qsub -h "$folder/inner.sh" 2>&1) ;;
    loadleveler) said=$(llsubmit "$folder/inner.sh" 2>&1) ;;
    *) false ;;
esac
code=$?
case $scheduler$code in
    pbs0) qdel "$(printf '%s\n' "$said" | tail -n 1)" > /dev/null 2>&1 ;;
    loadleveler0) llcancel "$(printf '%s\n' "$said" | sed -n 's/.*The job "\([^"]*\)".*/\1/p')" > /dev/null 2>&1 ;;
esac
said=$(printf '%s' "$said" | tr '\n' ' ')
if [ "$code" -eq 0 ]; then
    printf 'submit yes %s\n' "$said"
elif [ "$scheduler" != local ]; then
    printf 'submit no %s\n' "$said"
fi
