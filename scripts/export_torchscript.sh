#!/usr/bin/env bash
# Export every run named and verify the files; a run that fails is named at the end, the others are written.
#   scripts/export_torchscript.sh runs/a runs/b      writes runs/a/export/model.pt, runs/a/export/golden.npz, ...
#   OVERWRITE=true scripts/export_torchscript.sh runs/a
set -euo pipefail
(($#)) || { echo "usage: scripts/export_torchscript.sh RUN..." >&2; exit 2; }

failed=()
for run in "$@"; do
    mkdir -p "$run/export"
    uv run guie-export ckpt="$run" pt="$run/export/model.pt" overwrite="${OVERWRITE:-false}" || failed+=("$run")
done
((${#failed[@]} == 0)) || { echo "not exported: ${failed[*]}" >&2; exit 1; }
