"""The rows of a sample corpus of either version, one by one or as a stream."""

import itertools
from collections.abc import Iterator

from hf_msa.data.sample_corpus.clips import make_rows
from hf_msa.data.sample_corpus.story import SampleCorpusConfig, SampleRow, clip_numbers, make_row

#: Clips of version 2 that are made together; what a clip is does not depend on it.
_AT_ONCE = 128


def generate_rows(config: SampleCorpusConfig, split: str) -> Iterator[SampleRow]:
    """Yield the clips of a split one by one; the memory that is needed does not grow with the split.

    Videos of the three splits are interleaved, so no video is in two splits. Sizes only cut the stream: a larger split
    begins with the rows of a smaller one.

    Args:
        config: What to generate.
        split: ``"train"``, ``"validation"`` or ``"test"``.
    """
    numbers = clip_numbers(config, split)
    if config.version == 1:
        yield from (make_row(config, *number) for number in numbers)
        return
    while some := list(itertools.islice(numbers, _AT_ONCE)):
        yield from make_rows(config, some)


def generate_row(config: SampleCorpusConfig, video: int, clip: int) -> SampleRow:
    """Make one clip: a pure function of the configuration, the video's number and the clip's number in it."""
    return make_row(config, video, clip) if config.version == 1 else make_rows(config, [(video, clip)])[0]
