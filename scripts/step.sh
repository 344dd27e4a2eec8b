# Sourced by scripts/setup, which sets LOG and defines fail.
#
# step TITLE FIX COMMAND...: one line with the time taken. What takes long says every SAY_EVERY_S seconds what it is at: the
# last line of the log. On failure the end of the log, and the fix.

SAY_EVERY_S=${SAY_EVERY_S:-8}

step() {
  local title=$1 fix=$2 started=${EPOCHREALTIME/./} status=0 teller
  shift 2
  printf '%s ... ' "$title"
  tell_meanwhile "$started" &
  teller=$!
  "$@" >>"$LOG" 2>&1 || status=$?
  kill "$teller" 2>/dev/null || true
  wait "$teller" 2>/dev/null || true
  if [ "$status" -ne 0 ]; then
    printf 'failed\n'
    tail -n 15 "$LOG" | sed 's/^/  | /' >&2
    fail "$title: failed (whole log: $LOG)" "$fix"
  fi
  local ms
  ms=$(ms_since "$started")
  printf '%d.%d s\n' $((ms / 1000)) $((ms % 1000 / 100))
}

tell_meanwhile() { # Ends with the script, too: a Ctrl-C does not reach what runs in the background.
  local idle
  exec {idle}<> <(:) # nothing ever comes: `read` waits here, where `sleep` would be left behind
  while ! read -rt "$SAY_EVERY_S" -u "$idle" && [ -d "/proc/$$" ]; do
    printf '\n  %d s: %s ... ' $(($(ms_since "$1") / 1000)) "$(tail -n 1 "$LOG" | tr -cd '[:print:]' | cut -c 1-100)"
  done
}

ms_since() {
  echo $(((${EPOCHREALTIME/./} - $1) / 1000))
}
