# shellcheck shell=bash
# Corrections of what Slurm does to a job that runs or has ended: a start that the controller forgot, a launch that it
# takes for failed and holds, an end that it takes for a preemption. attempt.sh, sourced before, has the
# functions `field`, `show` and `note`.
# shellcheck disable=SC2154,SC2034 # they are assigned in the other files

stand_aside() { # if the controller, killed before it saved that this job runs, has it waiting according to $shown
  # It starts the job again while the nodes, which register with it, end this script: a race that one start in two
  # loses ("Job credential revoked"), and the job with it. So the start comes later, and this script waits for its end;
  # if it ended by itself, Slurm would take the waiting job for ended.
  [ "$(field JobState "$shown") $(field Restarts "$shown")" = "PENDING $attempt" ] || return 0
  echo "assay: the controller was down and forgot that job $job runs; it starts again in 30 s"
  trap '' TERM USR1
  scontrol update "jobid=$job" StartTime=now+30 || true
  sleep 900
}

runs_on() { # whether the controller, after a wait for it, has this job running
  show "$job" || return 1
  stand_aside
  [ "$(field JobState "$shown")" = RUNNING ]
}

let_go() { # release a job that Slurm holds because it took a launch for failed; true: released
  # A late reply of a busy node, or a launch sent twice, causes this for jobs that run or ended well.
  case $(field Reason "$shown") in launch_failed*) ;; *) return 1 ;; esac
  if [ "$(grep -c '"event": "released"' "$attempts" 2>/dev/null)" -ge 10 ]; then
    echo "assay: job $job is held for the eleventh time (launch failed requeued held) and is not released again" >&2
    return 1
  fi
  note released || true
  echo "assay: Slurm holds job $job as if its launch had failed; releasing it"
  scontrol release "$job"
}

settle() { # STATUS, before a script ends for good: nothing would correct the job's state afterwards
  show "$job" || return 0
  if let_go; then return 0; fi
  stand_aside
  [ "$1" = 0 ] && [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || return 0
  # Slurm takes a job that it once signalled to leave within a grace time for preempted when it ends, however much later,
  # and requeues it for a start with nothing left to do. Jobs that depend on this one need not wait for that.
  [ "$(field Restarts "$shown") $(field PreemptTime "$shown")" = "0 None" ] || free
  # If that launch fails, on a busy node, Slurm holds a job that is done; the next one of the run to end releases it.
  local held
  held=$(squeue --me --noheader --states=PENDING "--format=%i %r" 2>/dev/null | sed -n 's/^\([0-9]*\) launch failed requeued held$/\1/p') || return 0
  for held in $held; do
    ! grep -qF "\"job\": \"$held\"," "$root/slurm/jobs.jsonl" || scontrol release "$held" || true
  done
}

free() { # remove the dependency on this job, which has succeeded, from the jobs that wait for it
  local waiting after
  while read -r waiting after; do
    after=$(sed 's/\["\([a-z]*\)", "\([0-9_]*\)"\]/\1:\2/g; s/, /,/g' <<<"$after,")
    after=${after//afterok:$job,/}
    [ "${#after}" -lt 100000 ] || continue # an argument has at most 128 KiB; the job waits for the empty start instead
    scontrol update "jobid=$waiting" "Dependency=${after%,}" 2>/dev/null || true # it has ended, or keeps waiting
  done < <(grep -F "[\"afterok\", \"$job\"]" "$root/slurm/jobs.jsonl" 2>/dev/null |
    sed -n 's/^{"after": \[\(.*\)\], "job": "\([0-9]*\)".*/\2 \1/p')
}

watch_start() { # during the seconds after a start in which a killed controller forgets the job
  (
    trap '' TERM USR1
    sleep 8 >/dev/null 2>&1
    ! show "$job" || stand_aside
  ) &
  watcher=$!
  disown "$watcher" # bash would report that it was killed
}
