#!/usr/bin/env bash
# Sets up kidspeech on a pod: WHEEL CONSTRAINTS FINGERPRINT CACHE.
#
# The environment lies on the container's own disk, because ten thousand small files on the volume's network file system
# take half an hour; the volume keeps pip's cache. CUDA torch comes with the image. Run again, it does what is missing.
set -eu
umask 022
state="${HOME:-/root}/.kidspeech"
env="$state/env"
exec 7>"$state/in-use.lock"
flock -s 7
exec 6>"$state/bootstrap.lock" # a second controller waits for the first's work
flock 6
[ "$(cat "$env/.ready" 2>/dev/null)" = "$3" ] && exit 0

mkdir -p "$4/pip" "$4/huggingface"
export PIP_CACHE_DIR="$4/pip" PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_PROGRESS_BAR=off
[ -x "$env/bin/python" ] || python3 -m venv --system-site-packages "$env" >&2
# The image's torch stays as it is: another one is 3 GB, and made for a CUDA that this host's driver may not know.
"$env/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
  >"$env/image.txt" 2>/dev/null || : >"$env/image.txt"
# First the package alone, as this very file whatever its version says; then what it needs, in the versions it is tested
# with, or where the image's packages contradict them in any that suit.
"$env/bin/python" -m pip install --quiet --no-deps --force-reinstall "$1" >&2
"$env/bin/python" -m pip install --quiet --constraint "$env/image.txt" --constraint "$2" "$1" >&2 ||
  "$env/bin/python" -m pip install --quiet --constraint "$env/image.txt" "$1" >&2
"$env/bin/kidspeech" --help >/dev/null
printf '%s' "$3" >"$env/.ready.new"
mv "$env/.ready.new" "$env/.ready"
