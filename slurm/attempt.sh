# shellcheck shell=bash
# The machinery of every job's script: a record of each attempt, and what follows from the status that its command left.
# A job's script sources it from a copy that was kept at submission, then train.sh or step.sh. The script sets `root`,
# `environment`, `retries` and `requeues` ("yes", or "no" for a link of a chain); the other file calls `enter` once, and
# ends with `finish STATUS [CAUSE]`. `progress` is a word that changes when the job gets further: failures are counted anew with each.
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

remark() { # TEXT: what `squeue -o %k` and `sacct -o comment` tell of this job; the site's own words and the journal's head stay
  local text=${1//[^[:print:]]/ } was site head
  [ -n "${SLURM_JOB_ID:-}" ] || return 0
  was=$(scontrol show job "$job" 2>/dev/null | sed -n 's/^ *Comment=//p' | tail -n 1) || was=
  site=${was%%assay[: ]*}
  site=${site%; }
  head=$(grep -oE 'assay journal [0-9]*:[0-9a-f]*' <<<"$was" | tail -n 1) || head=
  scontrol update "jobid=$job" "comment=${site:+$site; }${text:0:240}${head:+; $head}" 2>/dev/null || true
}

killed() { # starts in a row, up to now, that did not say how they ended, and saved nothing
  [ -e "$attempts" ] || { echo 0 && return; }
  progress=$(in_json "$progress") awk '/"event": "ended"/ { count = 0 }
    /"event": "started"/ { count = index($0, "\"progress\": " ENVIRON["progress"]) ? count + 1 : 0 }
    END { print count + 0 }' "$attempts"
}

apart() { # an attempt has a log of its own; the one that Slurm opened gets what Slurm says, and where this one is
  local log=$root/slurm/logs/${SLURM_JOB_NAME:-assay}-$job.$attempt.log
  if { : >>"$log"; } 2>/dev/null; then
    echo "assay: job $job, attempt $attempt, on ${SLURM_JOB_NODELIST:-$(hostname)}, at $began: $log"
    exec >>"$log" 2>&1
  fi
}

begin() {
  echo "assay: job $job, attempt $attempt, on ${SLURM_JOB_NODELIST:-$(hostname)}, at $began"
  if [ ! -e "$root/slurm/jobs.jsonl" ]; then # it was there at submission: this node's mount is dead, if any is
    leave_out "$(this_node)"
    finish 66 "$(this_node) does not see $root; put it on a file system that all nodes share"
  fi
  if [ -e "$called_off" ]; then # it went back into the queue as somebody cancelled it
    echo "assay: job $job is cancelled"
    scancel "$job" || true
    exit 75
  fi
  if [ "$(killed)" -ge 10 ]; then
    retries=0
    finish 69 "its last ten starts were killed without a word, most often with their nodes"
  fi
  note started ", \"progress\": $(in_json "$progress")" || echo "assay: cannot write $attempts; the record of this attempt is only here" >&2
  # An update makes slurmctld save the job; one that was just started is else forgotten if slurmctld is killed now.
  [ -n "${SLURM_ARRAY_JOB_ID:-}" ] || remark "assay: attempt $attempt on ${SLURM_JOB_NODELIST:-}"
}

enter() { # begin; then source the site's script, and start this one anew, with what that exported and nothing else of it
  if [ "$entered" = no ]; then
    # of the shell that submitted: where other ranks met, and that srun should pass nothing on
    unset MASTER_ADDR MASTER_PORT RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK SLURM_EXPORT_ENV SRUN_EXPORT_ENV
    apart
    begin
    if [ -z "$environment" ]; then watch_start && return 0; fi
    export ASSAY_ENTERED="$job $attempt $began"
    # A signal of Slurm's ends the sourcing, and is no fault of the site's: 75 is SIGTERM's, 124 that of the time limit.
    # shellcheck disable=SC2064  # by then the site's script may have used these names
    trap "ASSAY_UNSOURCED=127 exec $BASH $(printf %q "$0")" EXIT # it said `exit`
    # shellcheck disable=SC2064
    trap "trap - EXIT; ASSAY_UNSOURCED=75 exec $BASH $(printf %q "$0")" TERM
    # shellcheck disable=SC2064
    trap "trap - EXIT; ASSAY_UNSOURCED=124 exec $BASH $(printf %q "$0")" USR1
    set +u # scripts of sites are rarely written for it
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
    75) finish 75 "told to leave (SIGTERM) while $environment was sourced" ;;
    *) finish "$why" "its time was over while $environment was sourced" ;;
  esac
}

made() { # the shards and artifacts that this job has finished, in all its attempts: what tells whether it gets further
  local count=0
  [ ! -e "$tally" ] || count=$(wc -l <"$tally")
  echo "$count made"
}

count_made() { # the commands of this script write down what they finish, where they can
  if : >>"$tally"; then export ASSAY_TALLY=$tally; fi 2>/dev/null
}

cause_of() { # STATUS -> in words
  case $1 in
    0) echo "done" ;;
    2) echo "the command line is wrong" ;;
    65) echo "something was altered or is torn" ;;
    66) echo "something is missing" ;;
    69) echo "the cluster refused, or a node is bad" ;;
    70) echo "a training process hung" ;;
    71) echo "the energy budget leaves no more" ;;
    73) echo "another process, alive, does the same work" ;;
    74) echo "the disk is full or refuses" ;;
    75) echo "told to leave; what is done is saved" ;;
    77) echo "the gate is closed" ;;
    78) echo "the configuration is wrong" ;;
    126 | 127) echo "the command is not on this node" ;;
    137) echo "killed, for want of memory or by somebody" ;;
    143) echo "told to end (SIGTERM)" ;;
    *) if [ "$1" -gt 128 ]; then echo "ended by signal $(($1 - 128))"; else echo "failed with status $1"; fi ;;
  esac
}

reason_in() { # FILE: the last error that our command told there, with the indented lines below it; else the last line
  awk '/ ERROR [A-Za-z]+: / { sub(/^.* ERROR [A-Za-z]+: /, ""); text = $0; inside = 1; next }
    inside && /^  / { if ($1 != "waived" && $1 != "shown") text = text "; " substr($0, 3); next }
    NF { inside = 0; last = $0 }
    END { print substr(text != "" ? text : last, 1, 600) }' "$1" 2>/dev/null || true
}

read_out() { # PROCESS that reads a command's output: until all was read; one that was left behind may keep the pipe open
  timeout 5 tail -s 0.1 "--pid=$1" -f /dev/null || true # SIGTERM ends it, too
}

this_node() { # as Slurm calls it
  echo "${SLURMD_NODENAME:-$(hostname -s)}"
}

# shellcheck disable=SC2154 # the script has it
blind() { # whether a file that the command names, and that was there at submission, is not to be seen on this node
  local word
  for word in "${command[@]}"; do
    case $word in /*) [ -e "$word" ] || { echo "$word" && return; } ;; esac
  done
  return 1
}

leave_out() { # NODES: this job does not get them again; Slurm is told once the job is back in the queue, not while it runs
  left_out=${left_out:+$left_out,}$1
}

field() { # NAME TEXT: a field of what `scontrol show job` says, '' where there is none
  local found
  found=$(tr ' ' '\n' <<<"$2" | sed -n "s/^$1=//p" | head -n 1) || found=
  case $found in "(null)") found= ;; esac
  echo "$found"
}

enough_without() { # NODES PARTITION FEATURES: whether enough others run jobs there; so too where nobody can say
  local all feature=$3
  case $feature in *[!A-Za-z0-9_.-]*) feature= ;; esac # a formula: only Slurm reads those
  all=$(sinfo --noheader --Node "--format=%N %b" "--partition=$2" --responding \
    --states=idle,allocated,mixed,completing,planned,reserved 2>/dev/null) || return 0
  [ -n "$all" ] || return 0
  [ -z "$feature" ] || all=$(awk -v feature="$feature" 'index("," $2 ",", "," feature ",")' <<<"$all")
  all=$(awk '{ print $1 }' <<<"$all" | sort -u)
  [ "$(grep -cvxF "$(scontrol show hostnames "$1" 2>/dev/null)" <<<"$all")" -ge "${SLURM_JOB_NUM_NODES:-1}" ]
}

most_blamed() { # of the nodes to leave out, the one that the attempts of this job, this one too, blamed most often
  local node
  for node in ${left_out//,/ }; do
    echo "$(grep -oE '"blamed": "[^"]*' "$attempts" 2>/dev/null | grep -cF ",$node," || true) $node"
  done | sort -s -k1,1nr | awk 'NR == 1 { print $2 }'
}

exclude() { # JOB TEXT: tell Slurm which nodes a waiting job, of which `scontrol show job` says TEXT, does not want
  local try partition features before=
  partition=$(field Partition "$2") features=$(field Features "$2") before=$(field ExcNodeList "$2")
  if ! enough_without "${before:+$before,}$left_out" "$partition" "$features"; then # it would wait for ever
    # Of two nodes whose clocks differ nobody knows which is wrong; with one at a time a third tells.
    before=$(sed -n 's/^#SBATCH --exclude="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' "$0" | head -n 1)
    local all=$left_out
    left_out=$(most_blamed)
    if ! enough_without "${before:+$before,}$left_out" "$partition" "$features"; then
      echo "assay: without $left_out too few nodes are left in $partition; job $1 may get them again"
      return
    fi
    [ "$all" = "$left_out" ] || echo "assay: without $all too few nodes are left in $partition: of them the most blamed is left out"
  fi
  echo "assay: job $1 leaves out $left_out from now on"
  for try in 1 2 3 4 5 6 7 8 9 10; do
    if scontrol update "jobid=$1" "ExcNodeList=${before:+$before,}$left_out" 2>/dev/null; then return; fi
    sleep 0.2
  done
  echo "assay: Slurm did not hear that (try $try)" >&2
}

cancelled() { # TEXT of `scontrol show job`: whether somebody wants this job to end; to requeue it would undo that
  case $(field JobState "$1") in
    CANCELLED | COMPLETING) # Slurm ends it: for its time or a job before it, or because somebody said so
      [ "$(field Reason "$1")" != TimeLimit ] || return 1
      case $(field PreemptTime "$1") in "" | None) return 0 ;; *) return 1 ;; esac
      ;;
    *) return 1 ;;
  esac
}

show() { # JOB: what the controller says of it, in $shown; one that is down is waited for, an hour; false: it knows of none
  local waited=0 pause=1 # at first each second: what it forgot it starts again within three, see `stand_aside`
  until shown=$(scontrol show job "$1" 2>&1); do
    case $shown in *"Invalid job id"*) return 1 ;; esac
    [ "$waited" -lt 3600 ] || return 1
    [ "$waited" -gt 0 ] || echo "assay: the controller does not answer; job $job waits for it: $shown"
    [ "$waited" -lt 300 ] || pause=10
    waited=$((waited + pause))
    sleep "$pause"
  done
}

later() { # STATUS: what needs time, not another node, is not tried at once: 60 s x 2^n after n such ends, spread for an array
  local seconds
  case ${ASSAY_LOCAL:+rehearsed}$1 in 69 | 73 | 74) ;; *) return 0 ;; esac
  seconds=$((pause_seconds << (failed > 6 ? 6 : failed > 0 ? failed - 1 : 0)))
  [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || seconds=$((seconds + RANDOM % (seconds + 1)))
  echo "assay: job $job begins again in $seconds s, or later"
  scontrol update "jobid=$job" "StartTime=now+$seconds" 2>/dev/null || true
}

again() { # STATUS: this job goes back into the queue; the script ends here
  local refused=0 restarts
  trap '' TERM # after a requeue Slurm ends this script and its children; what follows takes a moment
  # a job that ended while slurmctld is down would not come back, and what waits for it would end
  while [ "$refused" -lt 8 ] && show "$job"; do
    if let_go; then exit "$1"; fi
    if cancelled "$shown" || [ -e "$called_off" ]; then exit "$1"; fi
    stand_aside
    # Slurm itself puts a job back that it preempts, or whose node it lost sight of: the start that follows is left alone.
    restarts=$(field Restarts "$shown")
    if [ -n "$restarts" ] && [ "$restarts" != "$attempt" ]; then
      echo "assay: Slurm has put job $job back into the queue itself; this attempt only ends"
      exit "$1"
    fi
    if scontrol requeue "$job"; then
      if [ -e "$called_off" ]; then scancel "$job"; fi # it was, between the two
      if [ -n "$left_out" ]; then exclude "$job" "$shown"; else later "$1"; fi
      exit "$1"
    fi
    refused=$((refused + 1))
    sleep $((refused * 5))
  done
  echo "assay: job $job could not be requeued; go on with: assay slurm retry" >&2
  exit "$1"
}

links() { # before|behind: the links of this chain before this one that were submitted with it, or those behind it
  [ "$requeues" = no ] || return 0
  awk -v own="$job" -v side="$1" '
    function value(name) { return match($0, "\"" name "\": \"?[0-9]+") ? substr($0, RSTART, RLENGTH) : "" }
    /"kind": "train"/ { id = value("job"); sub(/.*"/, "", id); ids[++n] = id; with[n] = value("submission"); if (id == own) at = n }
    END { for (i = 1; at && i <= n; i++)
      if (side == "behind" ? i > at : i < at && with[i] == with[at]) print ids[i] }' "$root/slurm/jobs.jsonl" 2>/dev/null || true
}

pass_on() { # what this link leaves out, the links behind it do not get either
  local link
  [ -n "$left_out" ] || return 0
  for link in $(links behind); do
    ! show "$link" || exclude "$link" "$shown"
  done
}

end_chain() { # the links behind would end as this one
  local behind
  read -ra behind <<<"$(links behind | tr '\n' ' ')"
  if [ "${#behind[@]}" -gt 0 ]; then
    show "$job" || true # a controller that is down is waited for
    echo "assay: the links behind it are cancelled: ${behind[*]}"
    scancel "${behind[@]}" || true
  fi
}

failures() { # failed attempts of this job, and of the links before it, since it last got further
  local id files=("$attempts")
  for id in $(links before); do files+=("$root/slurm/attempts/$id.jsonl"); done
  cat "${files[@]}" 2>/dev/null | grep -aF "\"progress\": $(in_json "$progress")," | grep -caF '"outcome": "failed"' || true
}

finish() { # STATUS [CAUSE]
  local status=$1 cause outcome=failed known=yes unseen blamed=
  [ -z "$watcher" ] || kill -KILL "$watcher" 2>/dev/null || true # it ignores SIGTERM, which Slurm sends to all
  trap '' TERM USR1 # Slurm signals our children, too; without a record of the end nothing follows from it
  cause=${2:-$(cause_of "$status")}
  case $status in
    0) outcome="done" ;;
    75) outcome=left ;;
    66 | 78) # of what is there elsewhere: another node sees it
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
      remark "assay: $cause" # the next link goes on
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
    remark "assay: $cause; no try of $retries is left"
    end_chain
  fi
  settle "$status"
  exit "$status"
}
