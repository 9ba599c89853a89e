# shellcheck shell=bash
# One command of a run as a job: a share of a data step, a join, the audit, the evaluation, the report. It is the command
# that a person would type. Slurm sends SIGUSR1 to this script before the time limit and SIGTERM when it takes the node
# away; finished shards are kept, so the job is requeued and continues.
# attempt.sh, sourced before, has the functions. The job's script sets `srun_options`, `inside` and `command` (arrays) too.
# shellcheck disable=SC2154,SC2034,SC2317 # they are assigned, and functions are called, in the other files

progress=$(made)
before=$progress
enter
count_made
command -v assay >/dev/null || PATH=$PATH:$programs

workers=${SLURM_CPUS_ON_NODE:-1}
command+=(--data-workers "$workers")
if [ "$shares" != 0 ]; then
  command+=(--task "${SLURM_ARRAY_TASK_ID:?this script is of an array}/$shares")
fi
launcher=()
if [ "${#srun_options[@]}" -gt 0 ]; then
  launcher=(srun --ntasks=1 "--cpus-per-task=$workers" ${srun_options[@]+"${srun_options[@]}"})
fi

signalled=
trap 'signalled="signalled to leave before the time limit"' USR1
trap 'signalled="signalled to leave (SIGTERM)"' TERM

said=$(mktemp) || said=/dev/null
trap '[ "$said" = /dev/null ] || rm -f "$said"' EXIT
echo "assay: ${command[*]}"
exec 7> >(trap '' TERM USR1; exec tee "$said")
reader=$!
${launcher[@]+"${launcher[@]}"} ${inside[@]+"${inside[@]}"} "${command[@]}" >&7 2>&1 7>&- &
step=$!
exec 7>&-
status=0
wait "$step" || status=$?
progress=$(made)
if [ -n "$signalled" ]; then
  kill -TERM "$step" 2>/dev/null || true
  case $signalled in
    *limit*) [ "$progress" != "$before" ] || finish 124 "its time limit was reached before it finished a shard" ;;
  esac
  finish 75 "$signalled"
fi
trap '' TERM USR1 # they would end the commands that read its outcome
cause=
if [ "$status" -ne 0 ]; then
  read_out "$reader"
  why=$(reason_in "$said")
  [ -z "$why" ] || cause="$(cause_of "$status"): $why"
fi
finish "$status" "$cause"
