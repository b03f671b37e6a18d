#!/usr/bin/env bash
# Export every run named and verify the files; a run that fails is named at the end, the others are written.
#   scripts/export_torchscript.sh runs/a runs/b             writes runs/a/export/model.pt with its golden.npz, ...
#   scripts/export_torchscript.sh runs/a -- keep=64 contract=kaggle_guie          keys of guie-export for all
#   OVERWRITE=true scripts/export_torchscript.sh runs/a     without it a file that is there is verified again
set -euo pipefail

runs=()
while (($#)) && [[ "$1" != -- ]]; do
    runs+=("${1%/}")
    shift
done
keys=("${@:2}")
((${#runs[@]})) || { echo "usage: scripts/export_torchscript.sh RUN... [-- KEY=VALUE...]" >&2; exit 2; }

exported() {
    local file="$1/export/model.pt" overwrite="${OVERWRITE:-false}"
    [[ -d "$1" ]] || { echo "$1: there is no such run; accepted: a run or checkpoint folder" >&2; return 1; }
    if [[ -e "$file" && "$overwrite" != true ]]; then
        uv run guie-export verify="$file"
        return
    fi
    mkdir -p "$1/export"
    uv run guie-export ckpt="$1" pt="$file" overwrite="$overwrite" "${keys[@]}"
}

failed=()
for run in "${runs[@]}"; do
    exported "$run" || failed+=("$run")
    [[ ! -d "$run/export" ]] || rmdir --ignore-fail-on-non-empty "$run/export"
done
((${#failed[@]} == 0)) || { echo "not exported: ${failed[*]}" >&2; exit 1; }
