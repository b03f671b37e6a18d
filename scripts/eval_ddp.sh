#!/usr/bin/env bash
# Evaluate on several processes: pictures embedded and gallery searched by rank, the result that of one process.
#   scripts/eval_ddp.sh ckpt=runs/x dataset=sop             one process for each GPU, or each core without one
#   RANKS=2 scripts/eval_ddp.sh ckpt=runs/x dataset=sop
set -euo pipefail
exec uv run torchrun --standalone --nproc-per-node="${RANKS:-auto}" -m guie.cli.eval "$@"
