#!/usr/bin/env bash
# What the controller asks of a pod, one verb a call; it lies in ~/.kidspeech/pod.sh there.
#
# A JOB folder on the volume stands beside each RUN folder, which the training moves aside when it begins anew. It holds
# the log and who may train: the pod named in the newest owner-NNNNNN. A number is taken by creating its file, which
# only one can; a dead owner is not deleted but outnumbered, so two that take over at once can't both win.
set -u
umask 022
state="${HOME:-/root}/.kidspeech"
mkdir -p "$state"
sock="$state/tmux.sock"
cut -d. -f1 /proc/uptime >"$state/seen" # somebody asks: the watchdog counts from here

check() { # [KEY=VALUE...]: the tools, and a watchdog where the image started none
  for tool in tmux rsync flock curl md5sum find tail python3; do
    command -v "$tool" >/dev/null || { echo "the image has no $tool" >&2; exit 3; }
  done
  flock -n "$state/watchdog.lock" true || { echo "watchdog=there"; return; }
  env "$@" setsid bash "$state/watchdog.sh" >/dev/null 2>&1 </dev/null &
  sleep 0.5
  flock -n "$state/watchdog.lock" true && { echo "the watchdog does not start" >&2; exit 3; }
  echo "watchdog=started"
}

state() { # JOB: key=value lines
  local newest
  flock -n "$state/job.lock" true && echo "job=none" || echo "job=running"
  newest=$(find "$1" -maxdepth 1 -name 'owner-*' 2>/dev/null | sort | tail -n 1)
  [ -z "$newest" ] || { echo "generation=${newest##*-}"; echo "owner=$(head -c 64 "$newest")"; }
  [ ! -f "$1/job.json" ] || echo "end=$(head -c 1000 "$1/job.json")"
  [ ! -d "$1" ] || echo "last=$(tail -n 1 "$1/logs/current.log" 2>/dev/null | tail -c 500)"
}

prepare() { # SECONDS: let one controller at a time set this pod up, until it goes away or dies
  exec 5>"$state/prepare.lock"
  flock -w "$1" 5 || exit 1
  echo held
  exec cat >/dev/null
}

start() { # POD JOB GENERATION KEY RUN COMMAND...: 75 a job runs here, 76 another pod was faster
  local pod=$1 job=$2 generation=$3
  flock -n "$state/job.lock" true || exit 75
  mkdir -p "$job/logs" || exit 1
  (set -C && printf '%s' "$pod" >"$job/owner-$generation") 2>/dev/null || exit 76
  rm -f "$state/job.pid" "$job/job.json"
  tmux -S "$sock" new-session -d -s "job-$generation" bash "$state/pod.sh" job "$@" || exit 1
  for _ in $(seq 100); do [ -s "$state/job.pid" ] && return; sleep 0.1; done
  echo "the training did not start" >&2
  exit 1
}

job() { # the same, inside tmux
  local pod=$1 job=$2 generation=$3 key=$4 run=$5 log="$2/logs/current.log" child shown code
  shift 5
  exec 8>"$state/job.lock" 7>"$state/in-use.lock"
  flock -w 10 8 && flock -s 7 || exit 75
  [ ! -s "$log" ] || mv "$log" "$job/logs/$(date -u +%Y%m%dT%H%M%SZ)-$generation.log"
  : >"$log"
  # Its own group, without the locks: a loader process left behind by a killed training must not keep the pod.
  setsid "$@" >"$log" 2>&1 </dev/null 7>&- 8>&- &
  child=$!
  trap 'kill -TERM -- "-$child" 2>/dev/null' TERM INT HUP
  echo $$ >"$state/job.pid"
  tail -n +1 -F "$log" 2>/dev/null 7>&- 8>&- & # for `attach`
  shown=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  kill -KILL -- "-$child" 2>/dev/null
  sums "$run" >"$job/files.md5"
  printf '{"pod": "%s", "generation": "%s", "key": "%s", "code": %d, "ended": "%s"}\n' \
    "$pod" "$generation" "$key" "$code" "$(date -u +%FT%TZ)" >"$job/job.json.new"
  sync
  mv "$job/job.json.new" "$job/job.json" # last: with it the end is complete
  kill "$shown" 2>/dev/null
}

sums() { # RUN: what a fetch brings home, in md5sum's form
  cd "$1" 2>/dev/null && find best run.json tensorboard -type f -print0 2>/dev/null | sort -z | xargs -0r md5sum
}

follow() { # JOB OFFSET: the log from that byte on, until the training ends
  local log="$1/logs/current.log"
  if flock -n "$state/job.lock" true || [ ! -s "$state/job.pid" ]; then
    tail -c "+$(($2 + 1))" "$log" 2>/dev/null
    return 0
  fi
  exec tail -s 0.5 -c "+$(($2 + 1))" -F --pid="$(cat "$state/job.pid")" "$log" 2>/dev/null
}

halt() { # SECONDS: ask the training to save and end
  flock -n "$state/job.lock" true && return 0
  kill -TERM "$(cat "$state/job.pid")" 2>/dev/null
  flock -w "$1" "$state/job.lock" true
}

hold() { # SECONDS: keep the pod without a job
  tmux -S "$sock" kill-session -t hold 2>/dev/null
  tmux -S "$sock" new-session -d -s hold flock -s "$state/in-use.lock" sleep "$1"
}

curves() { # RUN PORT: tensorboard in tmux, once, on that port or the next free one; says which when it answers
  local port=$2
  if ! tmux -S "$sock" has-session -t curves 2>/dev/null; then
    while listens "$port"; do port=$((port + 1)); done
    echo "$port" >"$state/curves.port"
    tmux -S "$sock" new-session -d -s curves \
      "$state/env/bin/python" -m tensorboard.main --logdir "$1/tensorboard" --host 127.0.0.1 --port "$port"
  fi
  port=$(cat "$state/curves.port")
  for _ in $(seq 250); do # it takes seconds to import
    listens "$port" && { echo "$port"; return; }
    tmux -S "$sock" has-session -t curves 2>/dev/null || break
    sleep 0.2
  done
  echo "tensorboard does not start on the pod" >&2
  exit 1
}

listens() { # PORT: whether somebody does, on the pod's loopback
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

verify() { # FOLDER SECONDS: wait until an upload shows here whole, byte for byte
  local end=$((SECONDS + $2))
  exec 7>"$state/in-use.lock"
  flock -s 7
  while ! (cd "$1" 2>/dev/null && [ -f .pushed.md5 ] && md5sum --status -c .pushed.md5 2>/dev/null); do
    [ "$SECONDS" -lt "$end" ] || { (cd "$1" && md5sum --quiet -c .pushed.md5) 2>&1 | head -n 5 >&2; exit 1; }
    sleep 2
  done
}

attach() { # what the training shows, or a shell
  exec 7>"$state/in-use.lock"
  flock -s 7
  tmux -S "$sock" attach 2>/dev/null || exec bash -l
}

"$@"
