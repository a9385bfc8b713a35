#!/bin/sh
# The demo: real photographs in, a trained network, its report and its answers on unseen photographs out.
# `make demo` runs it from the root of the repository after the set-up.
set -eu

root=$(cd "$(dirname "$0")/../../.." && pwd)
bin=$root/.venv/bin
: "${DLHPC_RUNS:=$root/runs}"
export DLHPC_RUNS

echo "== Photographs"
"$bin/python" "$root/docs/examples/faces/photos.py" "$root/build/demo/faces"

echo "== Training: two Horovod ranks through a rendered job script, on the local scheduler"
name=$("$bin/python" -c 'import secrets; print("faces-demo-" + secrets.token_hex(3))')
"$bin/dlhpc" submit "$root/docs/examples/faces/faces.yaml" --set "name=$name" --wait

echo "== Unseen photographs"
# Two lines come out: where the table lies, and the accuracy. The accuracy is said again at the very end.
"$bin/dlhpc" predict "$name" --unseen > "$root/build/demo/predict.txt"
sed '$d' "$root/build/demo/predict.txt"

echo "== Report"
"$bin/dlhpc" report "$name"
tail -n 1 "$root/build/demo/predict.txt"
