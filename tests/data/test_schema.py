import pytest

from hf_msa.data.schema import (
    DATASETS,
    DatasetFacts,
    facts_for,
    msa_features,
    read_facts,
    write_facts,
)
from hf_msa.errors import MsaError


def test_columns_follow_what_the_data_has():
    assert list(msa_features()) == ["id", "video_id", "clip_id", "text", "label"]
    features = msa_features(5, 20, unimodal_labels=True, annotation=True, presence=True)
    assert features["audio"].shape == (None, 5)
    assert features["vision"].shape == (None, 20)
    assert features["vision"].dtype == "float32"
    assert {"label_text", "label_audio", "label_vision", "annotation", "audio_present", "vision_present"} <= set(
        features
    )


def test_presence_is_only_for_modalities_that_exist():
    features = msa_features(audio_dim=5, presence=True)
    assert "audio_present" in features
    assert "vision_present" not in features


def test_facts_survive_the_file(tmp_path):
    facts = DatasetFacts(
        "x", "sims", -1.0, 1.0, language="zh", aligned=True, audio_features=("f0", "energy"), homepage="http://x"
    )
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path / "msa_dataset.json") == facts


def test_unknown_keys_of_a_later_version_are_ignored():
    facts = facts_for("mosi")
    assert DatasetFacts.from_dict({**facts.to_dict(), "colour": "green"}) == facts


def test_incomplete_or_broken_facts_are_one_sentence(tmp_path):
    with pytest.raises(MsaError, match="incomplete"):
        DatasetFacts.from_dict({"name": "x"})
    (tmp_path / "msa_dataset.json").write_text("{")
    with pytest.raises(MsaError, match="not valid JSON"):
        read_facts(tmp_path / "msa_dataset.json")
    (tmp_path / "msa_dataset.json").write_text("[]")
    with pytest.raises(MsaError, match="JSON object"):
        read_facts(tmp_path / "msa_dataset.json")


@pytest.mark.parametrize(
    ("name", "family", "low"), [("mosi", "mosi", -3), ("mosei", "mosi", -3), ("sims", "sims", -1)]
)
def test_benchmarks_know_their_family(name, family, low):
    facts = facts_for(name)
    assert (facts.label_family, facts.label_low, facts.label_high) == (family, low, -low)
    assert sum(DATASETS["mosi"].split_sizes.values()) == 2199


def test_custom_needs_a_family_and_names_are_suggested():
    with pytest.raises(MsaError, match="'mosi', 'sims', or a YAML file"):
        facts_for("custom")
    assert facts_for("custom", "sims").label_high == 1.0
    assert facts_for("custom", "sims", (0.0, 0.5)).label_high == 0.5
    with pytest.raises(MsaError, match=r"goes beyond .* a YAML file with name, low: 1 and high: 5"):
        facts_for("custom", "mosi", (1.0, 5.0))
    with pytest.raises(MsaError, match="'mosei'"):
        facts_for("mosey")
    with pytest.raises(MsaError, match="label family 'sim'.*'sims'"):
        facts_for("custom", "sim")
    with pytest.raises(MsaError, match="empty"):
        facts_for("custom", "sims", (1.0, -1.0))
