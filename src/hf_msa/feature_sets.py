"""The table of feature sets, open to packages of others: what turns a recording into the frames that a model reads."""

from .models import msa_feature_sets
from .models.msa_feature_sets import FeatureSet
from .registry import Registry

FEATURE_SETS: Registry[FeatureSet] = Registry("feature set", "hf_msa.feature_sets")
"""Feature sets by name."""

for _found in msa_feature_sets.FEATURE_SETS.values():
    FEATURE_SETS.register(_found.name, _found)


def register_feature_set(features: FeatureSet) -> FeatureSet:
    """Make a feature set known by its name: to `hf-msa extract`, to processors and pipelines.

    A checkpoint on the Hub carries no code of it: where it is to make such features, the package has to be installed.

    Args:
        features: The set.

    Returns:
        The same set.

    Raises:
        MsaError: If the name is taken, or of another form.

    Example:
        ```python
        import numpy as np
        from hf_msa import register_feature_set
        from hf_msa.models.msa_feature_sets import FeatureSet


        def peaks(waveform):  # (samples,), mono at the set's rate
            padded = np.pad(np.abs(waveform), (0, -len(waveform) % 160))
            return padded.reshape(-1, 160).max(axis=1, keepdims=True)  # (frames, 1)


        register_feature_set(FeatureSet("peaks", 1, "audio", ("peak",), rate=16_000, compute=peaks, frames_per_second=100))
        ```
    """
    FEATURE_SETS.register(features.name, features)
    msa_feature_sets.FEATURE_SETS[features.name] = features
    return features
