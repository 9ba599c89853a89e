#!/usr/bin/env bash
# Slurm's tools for the jobs of a rehearsal (rehearsal.py), by the name under which this is called: scontrol, scancel, sinfo,
# srun. Their state is in $ASSAY_LOCAL, files for each job: JOB (the output of `scontrol show job`), JOB.requeue. For other
# jobs, and for the ranks inside an allocation ($ASSAY_ALLOCATION), the cluster's own tools are called.
set -euo pipefail

own=$(cd "$(dirname "$0")" && pwd)
name=${0##*/}

really() { # WORDS: the cluster's own tool of this name; false where there is none
  local found
  found=$(PATH=${PATH//"$own:"/} command -v "$name") || return 1
  SLURM_JOB_ID=${ASSAY_ALLOCATION:-} exec "$found" "$@"
}

field() { # JOB NAME VALUE: change a field in the description of a job
  local shown
  shown=$(<"$ASSAY_LOCAL/$1")
  printf '%s\n' "$shown" | sed "s|^ *$2=.*|   $2=${3//[|&\\]/ }|" >"$ASSAY_LOCAL/$1.new" && mv "$ASSAY_LOCAL/$1.new" "$ASSAY_LOCAL/$1"
}

ranks() { # [OPTIONS] WORDS: a process for each rank on this machine, as srun does
  local count=${SLURM_NTASKS:-1} wait_seconds=0 kill=yes rank failed=0 status pids=()
  while [[ ${1:-} == -* ]]; do
    case $1 in
      --ntasks=*) count=${1#*=} ;;
      --wait=*) wait_seconds=${1#*=} ;;
      --kill-on-bad-exit=0) kill=no ;;
    esac
    shift
  done
  SLURM_STEP_ID=$(($(cat "$ASSAY_LOCAL/step" 2>/dev/null || echo -1) + 1))
  echo "$SLURM_STEP_ID" >"$ASSAY_LOCAL/step"
  export SLURM_STEP_ID SLURM_NTASKS=$count SLURM_STEP_TASKS_PER_NODE=$count SLURM_NODEID=0
  for ((rank = 0; rank < count; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    pids+=($!)
  done
  trap 'kill -USR1 ${pids[@]+"${pids[@]}"} 2>/dev/null || true' USR1
  trap 'kill -TERM ${pids[@]+"${pids[@]}"} 2>/dev/null || true' TERM
  while [ "${#pids[@]}" -gt 0 ]; do
    local left=()
    for pid in ${pids[@]+"${pids[@]}"}; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
        continue
      fi
      status=0
      wait "$pid" || status=$?
      [ "$status" -le "$failed" ] || failed=$status
      [ "$status" = 0 ] || echo "srun: error: $(hostname -s): task: Exited with exit code $status" >&2
    done
    pids=(${left[@]+"${left[@]}"})
    if [ "$failed" != 0 ] && [ "${#pids[@]}" -gt 0 ]; then # the others have some time, as with srun's --wait
      [ "$kill" = no ] || wait_seconds=0
      SECONDS=${counted:+$SECONDS} counted=yes
      [ "$SECONDS" -lt "$wait_seconds" ] || kill -KILL ${pids[@]+"${pids[@]}"} 2>/dev/null || true
    fi
    sleep 0.2
  done
  exit "$failed"
}

case $name in
  scontrol)
    case "${1:-} ${2:-}" in
      "show hostnames") if [ -n "${ASSAY_ALLOCATION:-}" ]; then really "$@"; else tr ',' '\n' <<<"${3:-}"; fi ;;
      "show job")
        if [ -e "$ASSAY_LOCAL/${3:-}" ]; then cat "$ASSAY_LOCAL/$3"; else echo "Invalid job id specified" >&2 && exit 1; fi
        ;;
      requeue*) if [ -e "$ASSAY_LOCAL/$2" ]; then touch "$ASSAY_LOCAL/$2.requeue"; else really "$@"; fi ;;
      update*)
        job=${2#*=}
        if [ ! -e "$ASSAY_LOCAL/$job" ]; then really "$@"; exit; fi
        for word in "${@:3}"; do
          case ${word,,} in comment=*) field "$job" Comment "${word#*=}" ;; esac
        done
        ;;
      *) really "$@" ;;
    esac
    ;;
  scancel)
    for job in "$@"; do
      if [ -e "$ASSAY_LOCAL/$job" ]; then touch "$ASSAY_LOCAL/$job.cancel"; else really "$job"; fi
    done
    ;;
  sinfo) if [ -n "${ASSAY_ALLOCATION:-}" ]; then really "$@"; else echo localhost; fi ;;
  srun) if [ -n "${ASSAY_ALLOCATION:-}" ]; then really "$@"; else ranks "$@"; fi ;;
  *) really "$@" ;;
esac
