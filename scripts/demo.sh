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
# Recordings: spoken clips, a data set of them, a model that hears, and a score for a clip.
if [ ! -d "$out/spoken" ]; then
  hf-msa sample-corpus --preset tiny --recordings 60 --output "$out/spoken"
fi
if [ ! -d "$out/heard" ]; then
  hf-msa extract "$out/spoken/recordings/manifest.csv" --output "$out/heard" --label-family mosi --audio-set prosody
fi
hf-msa train tcmr/sample --data "$out/heard" --output "$out/listener" --text-model "$out/spoken/text_model" --num_train_epochs 3
clip=$(find "$out/spoken/recordings" -name '*.wav' | sort | head -n 1)
hf-msa predict "$out/listener/seed-1111" --audio "$clip"
printf '\nLook at:\n  %s  the numbers\n  %s  the curves over the missing rate\n  %s  the model card\n' \
  "$out/tcmr/results.json" "$out/tcmr/curves.png" "$out/tcmr/seed-1111/README.md"
