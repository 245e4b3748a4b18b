#!/bin/sh
# From nothing to a tested model on one laptop CPU: `make demo`. Everything is written under the folder given, default demo/.
set -eu
out=${1:-demo}
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
mkdir -p "$out"
if [ ! -d "$out/corpus" ]; then
  hf-msa sample-corpus --preset small --output "$out/corpus"
fi
hf-msa train tcmr/sample --data "$out/corpus" --output "$out/tcmr" --seeds 1111
hf-msa evaluate "$out/tcmr" --data "$out/corpus"
hf-msa predict "$out/tcmr/seed-1111" --text "the acting was wonderful but the story is a bit boring"
printf '\nLook at:\n  %s  the numbers\n  %s  the curves over the missing rate\n  %s  the model card\n' \
  "$out/tcmr/results.json" "$out/tcmr/curves.png" "$out/tcmr/seed-1111/README.md"
