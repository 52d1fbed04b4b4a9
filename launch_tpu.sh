#!/usr/bin/env bash
# Runs a command of this checkout on a TPU VM: copies the checkout there, installs it, runs it.
#
#   ./launch_tpu.sh NAME ZONE dyntok encode --model multilingual-e5-small --config configs/tpu.yaml \
#       texts.jsonl --out vectors.safetensors
#
#   WORKER=all ./launch_tpu.sh NAME ZONE env TEXT=TEXTS python -m train.hypernet \
#       --config FILE.yaml --distributed training.out=FOLDER
#
# NAME is a TPU VM that exists (gcloud compute tpus tpu-vm create). The command runs on its first
# host or, for trainings of several processes, on all; FOLDER is then one that all hosts mount.
# Files that the command writes below the checkout's out/ on the first host come back into ./out.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 worker=${WORKER:-0}
shift 2
cd "$(dirname "$0")"
ssh_to() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker="$worker" --command "$1"; }
scp() { gcloud compute tpus tpu-vm scp --zone "$zone" --worker="$1" --recurse "${@:2}"; }

archive=$(mktemp -t dyntok.XXXXXX.tar.gz)
trap 'rm -f "$archive"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --null -czf "$archive" -T -
scp "$worker" "$archive" "$name:dyntok.tar.gz"
printf -v quoted '%q ' "$@"
# The archive has no history: files that a run writes there say which commit made them.
commit=$(git rev-parse --short HEAD)
[ -z "$(git status --short)" ] || commit+=+changes
status=0
ssh_to "set -e
  mkdir -p dyntok && tar -xzf dyntok.tar.gz -C dyntok && cd dyntok && mkdir -p out
  python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'
  export PATH=\$PWD/.venv/bin:\$PATH DYNTOK_COMMIT=$commit
  $quoted" || status=$?
# Of a run that failed too: its batch and its metrics say why.
mkdir -p out
scp 0 "$name:dyntok/out" . || [ "$status" -ne 0 ] || status=$?
exit "$status"
