#!/usr/bin/env bash
# Runs a command of this checkout on a TPU VM: copies the checkout there, installs it, runs it.
#
#   ./launch_tpu.sh NAME ZONE dyntok encode --model multilingual-e5-small --config configs/tpu.yaml \
#       texts.jsonl --out vectors.safetensors
#
# NAME is a TPU VM of one host that exists (gcloud compute tpus tpu-vm create). Files the command
# writes below the checkout's out/ come back into ./out.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "$0")"
ssh_to() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=0 --command "$1"; }
scp_from() { gcloud compute tpus tpu-vm scp --zone "$zone" --worker=0 --recurse "$@"; }

archive=$(mktemp -t dyntok.XXXXXX.tar.gz)
trap 'rm -f "$archive"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --null -czf "$archive" -T -
scp_from "$archive" "$name:dyntok.tar.gz"
printf -v quoted '%q ' "$@"
ssh_to "set -e
  mkdir -p dyntok && tar -xzf dyntok.tar.gz -C dyntok && cd dyntok && mkdir -p out
  python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'
  export PATH=\$PWD/.venv/bin:\$PATH
  $quoted"
mkdir -p out
scp_from "$name:dyntok/out" .
