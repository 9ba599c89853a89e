# shellcheck shell=bash
# Training on the job's nodes. Each node is checked first; a bad one is excluded, and the job requests another. Then
# `srun` starts one rank a task, with the command that a person would type. Slurm sends SIGUSR1 to the ranks before the
# time limit and SIGTERM when it takes the nodes away: they save, exit with 75, and the job is requeued.
# A link of a chain ends instead, and the next link continues; one that finds the run finished ends with 0 at once.
# attempt.sh, sourced before, has the functions. The job's script sets the arrays `srun_options`, `rank_options`, `inside` and `command` too.
# shellcheck disable=SC2154,SC2034,SC2317 # they are assigned, and functions are called, in the other files

saved() { # the last saved step, of the run that wrote last; the count of failures starts again after each
  local step file newest=
  for file in "$root"/train/*/metrics.jsonl; do
    if [ -z "$newest" ] || [ "$file" -nt "$newest" ]; then newest=$file; fi
  done
  step=$(grep -aF '"event": "checkpoint"' "$newest" 2>/dev/null |
    sed -n 's/.*"step": \([0-9]*\).*/\1/p' | sort -n | tail -n 1) || true
  echo "step ${step:-0}"
}

run_step() { # as one_step, repeated if srun did not reach the controller, once that answers
  local try
  for try in 1 2 3 4 5; do
    one_step "$@"
    [ "$status" -ne 0 ] && [ -z "$signalled" ] && grep -aqE "$unreached" "$said" || return 0
    runs_on || return 0
    echo "assay: the controller answers again; srun is started again (try $((try + 1)))"
  done
}

one_step() { # WORDS of srun ...: output to the log, relevant lines to $said; its status in $status
  local reader
  # Slurm signals every process of the job: this one must survive to read the ranks' last messages
  exec 7> >(trap '' TERM USR1; tee -a /dev/stderr | { grep -aE "$relevant" || true; } | tail -n 40 >"$said")
  reader=$!
  srun ${srun_options[@]+"${srun_options[@]}"} "$@" >&7 2>&1 7>&- &
  step=$!
  exec 7>&-
  status=0
  wait "$step" || status=$?
  while kill -0 "$step" 2>/dev/null; do # a signal interrupts `wait`; the ranks are still saving
    status=0
    wait "$step" || status=$?
  done
  read_out "$reader"
}

why() { # the cause of the end, '' if unknown
  local words
  words=$(grep -aiE 'oom.kill|out of memory|exceeded .*memory limit' "$said" | head -n 1) || true
  if [ -n "$words" ]; then
    echo "out of memory: $words"
  elif grep -aqE ' ERROR [A-Za-z]+: ' "$said"; then
    reason_in "$said"
  else # the first rank that was killed; ranks that only lost it exited with a status of their own
    words=$(grep -aE '^srun: error: .*(task.*: (Killed|Aborted|Segm|Bus)|Node failure)' "$said" | head -n 1) || true
    [ -n "$words" ] || words=$(grep -aE '^srun: error: .*task.*: (Exited|Terminated)' "$said" | head -n 1) || true
    [ -n "$words" ] || words=$(grep -aE '^srun: error: ' "$said" | tail -n 1) || true
    echo "${words#srun: error: }"
  fi
}

not_seeing() { # nodes that ended for a missing file or a wrong configuration; false: none, all, or unknown
  local bad count
  bad=$(sed -n 's/^srun: error: \([^ ]*\): tasks\{0,1\} .*Exited with exit code \(66\|78\)$/\1/p' "$said" | sort -u | paste -sd,) || return 1
  [ -n "$bad" ] || return 1
  bad=$(scontrol show hostnames "$bad" 2>/dev/null | sort -u | paste -sd,) || return 1
  count=$(tr ',' '\n' <<<"$bad" | grep -c .) || return 1
  [ "$count" -lt "${SLURM_JOB_NUM_NODES:-1}" ] && echo "$bad"
}

preempted() { # whether another job takes these nodes, as far as known
  case $signalled in *SIGTERM*) return 0 ;; esac
  case $(field PreemptTime "$(scontrol show job "${SLURM_JOB_ID:-0}" 2>/dev/null)") in "" | None) return 1 ;; esac
}

progress=$(saved)
enter
command -v assay >/dev/null || PATH=$PATH:$programs

# The ranks' rendezvous is the first node. The site's script may have exported another address or port.
if [ -z "${MASTER_ADDR:-}" ]; then
  MASTER_ADDR=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-}" 2>/dev/null | head -n 1) || true
  MASTER_ADDR=${MASTER_ADDR:-$(hostname)}
fi
export MASTER_ADDR
export MASTER_PORT="${MASTER_PORT:-$((20000 + (${SLURM_JOB_ID:-0} + 97 * attempt) % 12768))}" # a taken port is not used again
if [ -n "$interface" ]; then # otherwise gloo uses the interface by which a node reaches the first one, and NCCL chooses itself
  export GLOO_SOCKET_IFNAME="$interface" NCCL_SOCKET_IFNAME="$interface"
fi
echo "assay: ranks meet at $MASTER_ADDR:$MASTER_PORT"

if ! said=$(mktemp); then
  leave_out "$(this_node)"
  finish 74 "$(hostname) has no room for a temporary file"
fi
trap 'rm -f "$said"' EXIT
relevant=' ERROR [A-Za-z]+: |bad-node=|oom.kill|[Oo]ut [Oo]f [Mm]emory|xceeded .*memory limit|execve|srun: error: '
unreached='srun: error: Unable to (confirm allocation|contact slurm controller)'
signalled=
step=
# A signal to this script alone (scancel --batch) is passed on; ranks that already have it act on the first.
trap 'signalled="signalled to leave before the time limit"; [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true' USR1
trap 'signalled="signalled to leave (SIGTERM)"; [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true' TERM
cores=()
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || cores=("--cpus-per-task=$SLURM_CPUS_PER_TASK") # srun does not inherit it

nodes=${SLURM_JOB_NUM_NODES:-1}
# When the first node has ended, the others have a minute: one that waits for another program on that port would hang.
run_step "--nodes=$nodes" "--ntasks=$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=60 --time=15 ${cores[@]+"${cores[@]}"} \
  ${inside[@]+"${inside[@]}"} assay slurm preflight "${command[@]:2}"
[ -z "$signalled" ] || finish 75 "$signalled"
if [ "$status" -ne 0 ]; then
  bad=$(grep -aoE 'bad-node=[^;]*' "$said" | cut -d= -f2 | sort -u | paste -sd,) || true
  if grep -aq 'execve' "$said"; then # a node could not start it: Slurm ends it with the number of the error, mostly 2
    bad=$(sed -n 's/^srun: error: \([^ ]*\): task.*Exited with exit code \(2\|13\)$/\1/p' "$said" | sort -u | paste -sd,) || true
    [ -z "$bad" ] || leave_out "$bad"
    finish 127 "the command is not on ${bad:-a node}"
  fi
  ! preempted || finish 75 "signalled to leave, as another job takes its nodes, during the preflight"
  if [ -z "$bad" ] && bad=$(not_seeing); then
    leave_out "$bad"
    finish 69 "preflight: $bad does not see files that the other nodes see: $(why)"
  fi
  [ -z "$bad" ] || leave_out "$bad"
  if [ "$status" -gt 128 ] && grep -aq ' ERROR ClusterError: ' "$said"; then status=69; fi # the other nodes were ended because of it
  cause=$(why)
  finish "$status" "preflight: ${cause:-$(cause_of "$status")}"
fi

# When the first rank fails, the others have a minute to save or to report; then they are ended.
# The output of each rank also goes to a file of its own, written on its node.
ranks=$root/slurm/logs/${SLURM_JOB_NAME:-train}-$job.$attempt
keeping=()
# shellcheck disable=SC2016 # the rank's shell fills these in
if mkdir -p "$ranks" 2>/dev/null; then
  keeping=(bash -c 'exec "$@" > >(trap "" TERM USR1; exec tee "$0/rank-${SLURM_PROCID:-0}.log") 2>&1' "$ranks")
fi
echo "assay: ${command[*]}"
run_step --kill-on-bad-exit=0 --wait=60 ${cores[@]+"${cores[@]}"} ${rank_options[@]+"${rank_options[@]}"} ${keeping[@]+"${keeping[@]}"} ${inside[@]+"${inside[@]}"} "${command[@]}"
trap '' TERM USR1 # they would end the commands that read its outcome
before=$progress
progress=$(saved)
cause=$(why)
if [ "$status" -gt 128 ] && grep -aq ' ERROR Hang: ' "$said"; then status=70; fi # the hung rank was killed last
case $status in
  75)
    if [ "$progress" = "$before" ] && ! preempted; then
      finish 124 "its time limit was reached before it saved a step; raise slurm.time_limit"
    fi
    cause="${signalled:-signalled to leave}; $progress is saved"
    ;;
  137 | 143)
    case $cause in
      *"Node failure"*) ;; # then Slurm ends the rest of the job, this script included
      *) [ -z "$signalled" ] || cause="$signalled, and ended before the save was complete; $progress is saved. Raise slurm.signal_seconds" ;;
    esac
    ;;
esac
finish "$status" "$cause"
