#!/usr/bin/env bash
# Ends this pod when nobody needs it. The container's command starts it before anything else, so that it is there before
# sshd and comes back with every restart of the container; the controller starts it again where an image did not.
#
# A pod is needed while somebody holds in-use.lock: a training, an installation, a transfer, `kidspeech runpod up`.
# It ends KIDSPEECH_IDLE seconds after the last of them, or after the controller's last question (pod.sh writes when), and
# at KIDSPEECH_DEADLINE (seconds since 1970) whatever runs.
# KIDSPEECH_SECONDS is the same limit counted by the machine's uptime, in case its clock jumps.
set -u
umask 077
state="${HOME:-/root}/.kidspeech"
mkdir -p "$state"

# An ssh session lacks the container's environment; the key stays in this process and never becomes an argument.
if [ -z "${RUNPOD_API_KEY:-}" ] && [ -r /proc/1/environ ]; then
  while IFS= read -r -d '' pair; do
    case "$pair" in RUNPOD_API_KEY=* | RUNPOD_POD_ID=* | KIDSPEECH_*=*) export "${pair?}" ;; esac
  done </proc/1/environ
fi

exec 9>"$state/watchdog.lock"
flock -n 9 || exit 0 # one is enough
echo $$ >"$state/watchdog.pid"

mkdir -p "$(dirname "${KIDSPEECH_NOTES:-/tmp/notes}")" 2>/dev/null
uptime() { cut -d. -f1 /proc/uptime; } # the machine's; no clock that is set moves it

say() {
  printf '%s watchdog: %s\n' "$(date -u +%FT%TZ)" "$1" |
    tee -a "$state/watchdog.log" >>"${KIDSPEECH_NOTES:-/dev/null}" 2>/dev/null
}

act() {
  printf 'header = "Authorization: Bearer %s"\n' "$RUNPOD_API_KEY" |
    curl -K - -sS -f -m 20 -o /dev/null -X POST -H 'Content-Type: application/json' -A kidspeech-watchdog \
      -d "{\"action\": \"$1\"}" "${KIDSPEECH_API:-https://api.runpod.io/v2}/pods/$RUNPOD_POD_ID/action" 9>&-
}

end_pod() {
  say "$1"
  if [ -s "$state/job.pid" ] && ! flock -n "$state/job.lock" true; then
    kill -TERM "$(cat "$state/job.pid")" 2>/dev/null # a last checkpoint
    flock -w 60 "$state/job.lock" true
  fi
  sync
  while :; do # until this process is gone with its pod
    act "${KIDSPEECH_END:-terminate}" 2>>"$state/watchdog.log" || {
      say "the API did not take it; trying runpodctl"
      runpodctl stop pod "$RUNPOD_POD_ID" || runpodctl pod stop "$RUNPOD_POD_ID"
    } >>"$state/watchdog.log" 2>&1
    sleep "$every" 9>&-
  done
}

every="${KIDSPEECH_WATCH:-10}"
born=$(uptime)
seen=$born
say "on watch: idle ${KIDSPEECH_IDLE:-240} s, deadline ${KIDSPEECH_DEADLINE:-none}"
while :; do
  now=$(uptime)
  flock -n "$state/in-use.lock" true 9>&- || seen=$now
  asked=$(cat "$state/seen" 2>/dev/null)
  [ "${asked:-0}" -le "$seen" ] || seen=$asked
  [ $((now - seen)) -lt "${KIDSPEECH_IDLE:-240}" ] || end_pod "nothing has run here for ${KIDSPEECH_IDLE:-240} s"
  [ "$(date +%s)" -lt "${KIDSPEECH_DEADLINE:-9999999999}" ] || end_pod "the deadline is over"
  [ $((now - born)) -lt "${KIDSPEECH_SECONDS:-999999999}" ] || end_pod "the hours are over"
  sleep "$every" 9>&-
done
