"""The sample corpus: generated clips with planted truth, for a first run without a download and for tests.

It is a test bed, never a benchmark. The specification is in the modules: `lexicon` and `grammar` (words, the rule that
scores them), `story` (options; latent sentiment, speakers, voice and face of version 1), `personas` and `clips` (version 2),
`rows` (either version), `recordings` and `speech` (clips that are spoken), `corpus_files` (the folder on disk), `text_model`
(a tokenizer and tiny BERT), `ceiling` and `inference` (the best possible prediction under a mask), `mechanisms` (what each
kind of mechanism can reach), `checks` (that it is what it claims).
"""

from hf_msa.data.sample_corpus.ceiling import ceiling_predictions, kept_masks
from hf_msa.data.sample_corpus.checks import check_corpus
from hf_msa.data.sample_corpus.corpus_files import (
    PlantedSplit,
    read_planted,
    read_planted_recordings,
    write_sample_corpus,
)
from hf_msa.data.sample_corpus.grammar import ROLES, score_tokens
from hf_msa.data.sample_corpus.mechanisms import mechanism_ceilings
from hf_msa.data.sample_corpus.recordings import measure_recordings, read_manifest
from hf_msa.data.sample_corpus.rows import generate_row, generate_rows
from hf_msa.data.sample_corpus.story import (
    PRESETS,
    SENTIMENTS,
    SampleCorpusConfig,
    SampleRow,
    preset,
)

__all__ = [
    "PRESETS",
    "ROLES",
    "SENTIMENTS",
    "PlantedSplit",
    "SampleCorpusConfig",
    "SampleRow",
    "ceiling_predictions",
    "check_corpus",
    "generate_row",
    "generate_rows",
    "kept_masks",
    "measure_recordings",
    "mechanism_ceilings",
    "preset",
    "read_manifest",
    "read_planted",
    "read_planted_recordings",
    "score_tokens",
    "write_sample_corpus",
]
