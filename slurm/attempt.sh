# shellcheck shell=bash
# The machinery of every job's script: a record of each attempt, and the reaction to the exit status of its command.
# A job's script sources it from a copy that was kept at submission, then train.sh or step.sh. The script sets `root`,
# `environment`, `retries` and `requeues` ("yes", or "no" for a link of a chain); the other file calls `enter` once, and
# ends with `finish STATUS [CAUSE]`. `progress` is a text that changes when the job advances: the count of failures starts again with each change.
#
# A task of an array is named by the array and its number: the id of its last task is the array's own, and to requeue
# that would requeue all of them.

: "${root:=}" "${environment:=}" "${retries:=0}" "${requeues:=yes}"
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-0}}
job=${job:-${SLURM_JOB_ID:-0}}
attempts=$root/slurm/attempts/$job.jsonl
attempt=${SLURM_RESTART_COUNT:-0}
tally=${attempts%.jsonl}.made
called_off=$root/slurm/cancelled/${job%%_*}
progress=
left_out=
failed=0
pause_seconds=${ASSAY_PAUSE_SECONDS:-60} # tests have less time
shown=
watcher=
began=$(date -u +%Y-%m-%dT%H:%M:%SZ)
entered=no
case ${ASSAY_ENTERED:-} in "$job $attempt "*) entered=yes began=${ASSAY_ENTERED##* } ;; esac
unset ASSAY_ENTERED

in_json() { # TEXT -> a JSON string; of a character that was cut in halves, nothing
  local text
  text=$(iconv -c -f UTF-8 -t UTF-8 <<<"$1" 2>/dev/null) || [ -n "$text" ] || text=${1//[^ -~]/ }
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//[$'\001'-$'\037']/ }
  printf '"%s"' "$text"
}

note() { # EVENT [more fields]: one line of the record; false where the disk refuses
  { [ -d "$root/slurm" ] && mkdir -p "${attempts%/*}" && printf '{"event": "%s", "job": "%s", "attempt": %d, "nodes": %s, "started": "%s", "time": "%s"%s}\n' \
    "$1" "$job" "$attempt" "$(in_json "${SLURM_JOB_NODELIST:-$(hostname)}")" "$began" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "${2:-}" \
    >>"$attempts"; } 2>/dev/null
}

remark() { # TEXT: comment of this job in `squeue -o %k` and `sacct -o comment`; the site's own text and the journal's head are kept
  local text=${1//[^[:print:]]/ } was site head
  [ -n "${SLURM_JOB_ID:-}" ] || return 0
  was=$(scontrol show job "$job" 2>/dev/null | sed -n 's/^ *Comment=//p' | tail -n 1) || was=
  site=${was%%assay[: ]*}
  site=${site%; }
  head=$(grep -oE 'assay journal [0-9]*:[0-9a-f]*' <<<"$was" | tail -n 1) || head=
  scontrol update "jobid=$job" "comment=${site:+$site; }${text:0:240}${head:+; $head}" 2>/dev/null || true
}

killed() { # number of consecutive starts, up to now, that recorded no end and saved nothing
  [ -e "$attempts" ] || { echo 0 && return; }
  progress=$(in_json "$progress") awk '/"event": "ended"/ { count = 0 }
    /"event": "started"/ { count = index($0, "\"progress\": " ENVIRON["progress"]) ? count + 1 : 0 }
    END { print count + 0 }' "$attempts"
}

apart() { # a log for each attempt; the one that Slurm opened gets Slurm's messages, and the path of this one
  local log=$root/slurm/logs/${SLURM_JOB_NAME:-assay}-$job.$attempt.log
  if { : >>"$log"; } 2>/dev/null; then
    echo "assay: job $job, attempt $attempt, on ${SLURM_JOB_NODELIST:-$(hostname)}, at $began: $log"
    exec >>"$log" 2>&1
  fi
}

begin() {
  echo "assay: job $job, attempt $attempt, on ${SLURM_JOB_NODELIST:-$(hostname)}, at $began"
  if [ ! -e "$root/slurm/jobs.jsonl" ]; then # it existed at submission, so this node's mount is dead
    leave_out "$(this_node)"
    finish 66 "$(this_node) does not see $root; put it on a file system that all nodes share"
  fi
  if [ -e "$called_off" ]; then # it was requeued while somebody cancelled it
    echo "assay: job $job is cancelled"
    scancel "$job" || true
    exit 75
  fi
  if [ "$(killed)" -ge 10 ]; then
    retries=0
    finish 69 "its last ten starts were killed without a record of their end, most often with their nodes"
  fi
  note started ", \"progress\": $(in_json "$progress")" || echo "assay: cannot write $attempts; this attempt is recorded only in this log" >&2
  # An update makes slurmctld save the job; without it, slurmctld forgets a job that has just started if it is killed now.
  [ -n "${SLURM_ARRAY_JOB_ID:-}" ] || remark "assay: attempt $attempt on ${SLURM_JOB_NODELIST:-}"
}

enter() { # begin; then source the site's script, and start this one again with the exported variables alone
  if [ "$entered" = no ]; then
    # from the submitting shell: the rendezvous of other ranks, and options that stop srun from passing variables on
    unset MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK SLURM_EXPORT_ENV SRUN_EXPORT_ENV
    apart
    begin
    if [ -z "$environment" ]; then watch_start && return 0; fi
    export ASSAY_ENTERED="$job $attempt $began"
    # A signal from Slurm ends the sourcing and is not the site's fault: 75 stands for SIGTERM, 124 for the time limit.
    # shellcheck disable=SC2064  # by then the site's script may have changed these variables
    trap "ASSAY_UNSOURCED=127 exec $BASH $(printf %q "$0")" EXIT # it said `exit`
    # shellcheck disable=SC2064
    trap "trap - EXIT; ASSAY_UNSOURCED=75 exec $BASH $(printf %q "$0")" TERM
    # shellcheck disable=SC2064
    trap "trap - EXIT; ASSAY_UNSOURCED=124 exec $BASH $(printf %q "$0")" USR1
    set +u # site scripts are rarely written for it
    # shellcheck disable=SC1090
    source "$environment" || export ASSAY_UNSOURCED=127
    trap - EXIT TERM USR1
    exec "$BASH" "$0"
  fi
  [ -z "${ASSAY_LOCAL:-}" ] || PATH=$ASSAY_LOCAL/bin:$PATH # in a rehearsal, before those of the site's script
  local why=${ASSAY_UNSOURCED:-}
  unset ASSAY_UNSOURCED
  case $why in
    "") watch_start ;;
    127) finish 127 "the environment $environment cannot be sourced on $(hostname)" ;;
    75) finish 75 "signalled to leave (SIGTERM) while $environment was sourced" ;;
    *) finish "$why" "its time limit was reached while $environment was sourced" ;;
  esac
}

made() { # number of shards and artifacts that this job has finished, in all its attempts: its progress
  local count=0
  [ ! -e "$tally" ] || count=$(wc -l <"$tally")
  echo "$count made"
}

count_made() { # let the commands of this script record what they finish, where the disk allows it
  if : >>"$tally"; then export ASSAY_TALLY=$tally; fi 2>/dev/null
}

cause_of() { # STATUS -> its meaning
  case $1 in
    0) echo "done" ;;
    2) echo "the command line is wrong" ;;
    65) echo "data altered or torn" ;;
    66) echo "input missing" ;;
    69) echo "scheduler or node unavailable" ;;
    70) echo "a training process hung" ;;
    71) echo "energy budget exhausted" ;;
    73) echo "another live process does the same work" ;;
    74) echo "disk full or refusing" ;;
    75) echo "signalled to leave; finished work is saved" ;;
    77) echo "the gate is closed" ;;
    78) echo "the configuration is wrong" ;;
    126 | 127) echo "the command is not on this node" ;;
    137) echo "killed, by the out-of-memory killer or by a user" ;;
    143) echo "ended by SIGTERM" ;;
    *) if [ "$1" -gt 128 ]; then echo "ended by signal $(($1 - 128))"; else echo "failed with status $1"; fi ;;
  esac
}

reason_in() { # FILE: the last error that our command reported there, with the indented lines below it; else the last line
  awk '/ ERROR [A-Za-z]+: / { sub(/^.* ERROR [A-Za-z]+: /, ""); text = $0; inside = 1; next }
    inside && /^  / { if ($1 != "waived" && $1 != "shown") text = text "; " substr($0, 3); next }
    NF { inside = 0; last = $0 }
    END { print substr(text != "" ? text : last, 1, 600) }' "$1" 2>/dev/null || true
}

read_out() { # PROCESS that reads a command's output: wait until all is read; an orphan may keep the pipe open
  timeout 5 tail -s 0.1 "--pid=$1" -f /dev/null || true # SIGTERM ends it, too
}

this_node() { # Slurm's name of it
  echo "${SLURMD_NODENAME:-$(hostname -s)}"
}

# shellcheck disable=SC2154 # the script has it
blind() { # a file of the command that existed at submission and is not visible on this node; false: none
  local word
  for word in "${command[@]}"; do
    case $word in /*) [ -e "$word" ] || { echo "$word" && return; } ;; esac
  done
  return 1
}

leave_out() { # NODES: exclude them from this job; Slurm is informed once the job is back in the queue, not while it runs
  left_out=${left_out:+$left_out,}$1
}

field() { # NAME TEXT: a field in the output of `scontrol show job`, '' without one
  local found
  found=$(tr ' ' '\n' <<<"$2" | sed -n "s/^$1=//p" | head -n 1) || found=
  case $found in "(null)") found= ;; esac
  echo "$found"
}

enough_without() { # NODES PARTITION FEATURES: whether enough other nodes run jobs there; true if unknown
  local all feature=$3
  case $feature in *[!A-Za-z0-9_.-]*) feature= ;; esac # a formula: only Slurm evaluates those
  all=$(sinfo --noheader --Node "--format=%N %b" "--partition=$2" --responding \
    --states=idle,allocated,mixed,completing,planned,reserved 2>/dev/null) || return 0
  [ -n "$all" ] || return 0
  [ -z "$feature" ] || all=$(awk -v feature="$feature" 'index("," $2 ",", "," feature ",")' <<<"$all")
  all=$(awk '{ print $1 }' <<<"$all" | sort -u)
  [ "$(grep -cvxF "$(scontrol show hostnames "$1" 2>/dev/null)" <<<"$all")" -ge "${SLURM_JOB_NUM_NODES:-1}" ]
}

most_blamed() { # the node to exclude that the attempts of this job, including this one, blamed most often
  local node
  for node in ${left_out//,/ }; do
    echo "$(grep -oE '"blamed": "[^"]*' "$attempts" 2>/dev/null | grep -cF ",$node," || true) $node"
  done | sort -s -k1,1nr | awk 'NR == 1 { print $2 }'
}

exclude() { # JOB TEXT: exclude nodes from a waiting job whose output of `scontrol show job` is TEXT
  local try partition features before=
  partition=$(field Partition "$2") features=$(field Features "$2") before=$(field ExcNodeList "$2")
  if ! enough_without "${before:+$before,}$left_out" "$partition" "$features"; then # it would never start
    # Of two nodes whose clocks differ, either may be wrong; excluding one at a time lets a third decide.
    before=$(sed -n 's/^#SBATCH --exclude="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$0" | head -n 1)
    local all=$left_out
    left_out=$(most_blamed)
    if ! enough_without "${before:+$before,}$left_out" "$partition" "$features"; then
      echo "assay: without $left_out too few nodes are left in $partition; job $1 may get them again"
      return
    fi
    [ "$all" = "$left_out" ] || echo "assay: without $all too few nodes are left in $partition: only the most blamed is excluded"
  fi
  echo "assay: job $1 excludes $left_out from now on"
  for try in 1 2 3 4 5 6 7 8 9 10; do
    if scontrol update "jobid=$1" "ExcNodeList=${before:+$before,}$left_out" 2>/dev/null; then return; fi
    sleep 0.2
  done
  echo "assay: Slurm did not accept that (try $try)" >&2
}

cancelled() { # TEXT of `scontrol show job`: whether the job was cancelled; a requeue would undo that
  case $(field JobState "$1") in
    CANCELLED | COMPLETING) # Slurm ends it: for its time limit, a failed dependency, or a cancellation
      [ "$(field Reason "$1")" != TimeLimit ] || return 1
      case $(field PreemptTime "$1") in "" | None) return 0 ;; *) return 1 ;; esac
      ;;
    *) return 1 ;;
  esac
}

show() { # JOB: sets $shown to the controller's description, waiting up to an hour for the controller; false: unknown job
  local waited=0 pause=1 # at first each second: a forgotten job starts again within three, see `stand_aside`
  until shown=$(scontrol show job "$1" 2>&1); do
    case $shown in *"Invalid job id"*) return 1 ;; esac
    [ "$waited" -lt 3600 ] || return 1
    [ "$waited" -gt 0 ] || echo "assay: the controller does not answer; job $job waits for it: $shown"
    [ "$waited" -lt 300 ] || pause=10
    waited=$((waited + pause))
    sleep "$pause"
  done
}

later() { # STATUS: delay a retry that needs time, not another node: 60 s x 2^n after n such ends, spread for an array
  local seconds
  case ${ASSAY_LOCAL:+rehearsed}$1 in 69 | 73 | 74) ;; *) return 0 ;; esac
  seconds=$((pause_seconds << (failed > 6 ? 6 : failed > 0 ? failed - 1 : 0)))
  [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || seconds=$((seconds + RANDOM % (seconds + 1)))
  echo "assay: job $job starts again in $seconds s, or later"
  scontrol update "jobid=$job" "StartTime=now+$seconds" 2>/dev/null || true
}

again() { # STATUS: requeue this job and end the script
  local refused=0 restarts
  trap '' TERM # after a requeue Slurm ends this script and its children, and the rest takes a moment
  # a job that ended while slurmctld is down would not come back, and jobs that depend on it would be cancelled
  while [ "$refused" -lt 8 ] && show "$job"; do
    if let_go; then exit "$1"; fi
    if cancelled "$shown" || [ -e "$called_off" ]; then exit "$1"; fi
    stand_aside
    # Slurm itself requeues a job that it preempts, or whose node it lost: the start that follows is left alone.
    restarts=$(field Restarts "$shown")
    if [ -n "$restarts" ] && [ "$restarts" != "$attempt" ]; then
      echo "assay: Slurm has requeued job $job itself; this attempt only ends"
      exit "$1"
    fi
    if scontrol requeue "$job"; then
      if [ -e "$called_off" ]; then scancel "$job"; fi # it was cancelled between the two
      if [ -n "$left_out" ]; then exclude "$job" "$shown"; else later "$1"; fi
      exit "$1"
    fi
    refused=$((refused + 1))
    sleep $((refused * 5))
  done
  echo "assay: job $job could not be requeued; continue with: assay slurm retry" >&2
  exit "$1"
}

links() { # before|behind: the links of this chain before this one that were submitted with it, or those after it
  [ "$requeues" = no ] || return 0
  awk -v own="$job" -v side="$1" '
    function value(name) { return match($0, "\"" name "\": \"?[0-9]+") ? substr($0, RSTART, RLENGTH) : "" }
    /"kind": "train"/ { id = value("job"); sub(/.*"/, "", id); ids[++n] = id; with[n] = value("submission"); if (id == own) at = n }
    END { for (i = 1; at && i <= n; i++)
      if (side == "behind" ? i > at : i < at && with[i] == with[at]) print ids[i] }' "$root/slurm/jobs.jsonl" 2>/dev/null || true
}

pass_on() { # exclude the nodes that this link excludes from the later links, too
  local link
  [ -n "$left_out" ] || return 0
  for link in $(links behind); do
    ! show "$link" || exclude "$link" "$shown"
  done
}

end_chain() { # cancel the later links, which would end as this one
  local behind
  read -ra behind <<<"$(links behind | tr '\n' ' ')"
  if [ "${#behind[@]}" -gt 0 ]; then
    show "$job" || true # wait for a controller that is down
    echo "assay: the later links are cancelled: ${behind[*]}"
    scancel "${behind[@]}" || true
  fi
}

failures() { # failed attempts of this job, and of the links before it, since its last progress
  local id files=("$attempts")
  for id in $(links before); do files+=("$root/slurm/attempts/$id.jsonl"); done
  cat "${files[@]}" 2>/dev/null | grep -aF "\"progress\": $(in_json "$progress")," | grep -caF '"outcome": "failed"' || true
}

finish() { # STATUS [CAUSE]
  local status=$1 cause outcome=failed known=yes unseen blamed=
  # The watcher ignores SIGTERM, which Slurm sends to all. It ends within seconds: hours later its number may be another's.
  [ -z "$watcher" ] || ! grep -qsx "PPid:[[:space:]]*$$" "/proc/$watcher/status" || kill -KILL "$watcher" 2>/dev/null || true
  trap '' TERM USR1 # Slurm signals our children, too, and the record of the end must be written
  cause=${2:-$(cause_of "$status")}
  case $status in
    0) outcome="done" ;;
    75) outcome=left ;;
    66 | 78) # if other nodes see the file, another node can run the job
      if [ "$known" = yes ] && [ -z "$left_out" ] && unseen=$(blind); then
        leave_out "$(this_node)"
        cause="$(this_node) does not see $unseen; $cause"
      fi
      [ -n "$left_out" ] || outcome=explained
      ;;
    2 | 65 | 71 | 77) outcome=explained ;;
  esac
  [ -z "$left_out" ] || blamed=", \"blamed\": $(in_json ",$left_out,")"
  note ended ", \"status\": $status, \"outcome\": \"$outcome\", \"progress\": $(in_json "$progress"), \"cause\": $(in_json "$cause")$blamed" || known=no
  echo "assay: job $job, attempt $attempt: $cause (status $status)"
  case $outcome in
    "done") settle 0 && exit 0 ;;
    explained)
      remark "assay: $cause"
      end_chain
      settle "$status"
      exit "$status"
      ;;
    left)
      [ "$requeues" != yes ] || again 75
      remark "assay: $cause" # the next link continues
      settle 75
      exit 75
      ;;
  esac
  failed=$((attempt + 1))
  if [ "$known" = yes ]; then failed=$(failures); fi
  case $status in 126 | 127) [ -n "$left_out" ] || leave_out "$(this_node)" ;; esac
  if [ "$failed" -le "$retries" ]; then
    remark "assay: $cause; try $failed of $retries more"
    [ "$requeues" != yes ] || again "$status"
    pass_on
  else
    remark "assay: $cause; none of $retries tries is left"
    end_chain
  fi
  settle "$status"
  exit "$status"
}
