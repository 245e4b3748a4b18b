"""Version 2 of the sample corpus: what it plants, how much of it, and what its ceilings say."""

import itertools
import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_msa.data.sample_corpus import (
    PlantedSplit,
    ceiling_predictions,
    check_corpus,
    checks,
    clips,
    corpus_files,
    generate_row,
    generate_rows,
    inference,
    lexicon,
    mechanisms,
    personas,
    preset,
    read_planted,
    story,
    text_model,
    write_sample_corpus,
)
from hf_msa.data.sample_corpus.rows import make_rows
from hf_msa.errors import MsaError
from hf_msa.models.msa_schema import SENTIMENT_SCALE
from hf_msa.models.omg_plan import PLAN_FIELDS
from hf_msa_cli import main

MODALITIES = ("text", "audio", "vision")
FRAMES = ("audio", "vision")
OFF = {
    "audio_articulation": 0.0, "vision_articulation": 0.0, "persona": 0.0, "persona_gain": 0.0, "persona_flips": 0.0,
    "audio_sentiment": 0.0, "vision_sentiment": 0.0, "conflict_rate": 0.0,
}  # fmt: skip
TINY = preset("tiny")
V1_TEXT, V1_LABEL = "everyone believe it remained bland", 1.2
V1_AUDIO = [1.260694, 0.0, -0.0336922, -2.9234812, -1.0082589]
V1_VISION_SUM = 67.769669


def numbers_of(config, split, count):
    return list(itertools.islice(story.clip_numbers(config, split), count))


# --- version 1 stays ---


def test_version_1_is_what_it_was():
    row = generate_row(preset("tiny", version=1), 2, 1).row
    assert row["text"] == V1_TEXT
    assert row["label"] == pytest.approx(V1_LABEL)
    np.testing.assert_allclose(row["audio"][3], V1_AUDIO, rtol=1e-5)
    assert row["vision"].sum() == pytest.approx(V1_VISION_SUM, rel=1e-4)


def test_a_configuration_without_a_version_is_of_version_1():
    old = preset("tiny", version=1).to_dict()
    assert "version" not in old and "persona" not in old and old["audio_signal"] == 0.27
    assert story.SampleCorpusConfig.from_dict(old) == preset("tiny", version=1)
    new = TINY.to_dict()
    assert new["version"] == 2 and "audio_signal" not in new
    assert story.SampleCorpusConfig.from_dict(new) == TINY


# --- rows ---


def test_a_row_does_not_depend_on_what_is_made_with_it():
    numbers = numbers_of(TINY, "train", 30)
    together = make_rows(TINY, numbers)
    for i in (0, 7, 29):
        (alone,) = make_rows(TINY, [numbers[i]])
        (_, beside) = make_rows(TINY, [numbers[3], numbers[i]])
        for other in (alone, beside):
            for modality in FRAMES:
                np.testing.assert_array_equal(other.row[modality], together[i].row[modality])
            assert repr(other.planted) == repr(together[i].planted)
            assert other.row["label"] == together[i].row["label"]


def test_streamed_rows_are_those_in_memory_and_memory_does_not_grow():
    config = replace(TINY, train=1200)
    next(generate_rows(config, "train"))
    peaks = []
    for count in (300, 1200):
        tracemalloc.start()
        last = None
        for sample in itertools.islice(generate_rows(config, "train"), count):
            last = sample
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
    video, clip = numbers_of(config, "train", 1200)[-1]
    assert repr(generate_row(config, video, clip).planted) == repr(last.planted)


_PEAK = """
import resource, sys
from hf_msa.data.sample_corpus import check_corpus, write_sample_corpus
tiny = dict(audio_dim=2, vision_dim=2, vision_articulation=0.0, audio_articulation=0.1, persona=0.1, sentiment="weak")
# Too few test clips to judge, which takes the same memory at any size.
check_corpus(write_sample_corpus(sys.argv[1], "tiny", train=int(sys.argv[2]), **tiny))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_what_is_written_and_checked(tmp_path):
    peaks = []
    for size in (10_000, 60_000):
        command = [sys.executable, "-c", _PEAK, str(tmp_path / str(size)), str(size)]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(made.stdout.split()[-1]))
    # MiB, of which allocators keep some more or less. What remembered its rows took 1 KiB of each.
    assert peaks[1] < peaks[0] + 35, peaks


def test_some_planted_facts_are_streamed_over_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_files, "_ROWS_AT_ONCE", 10)
    monkeypatch.setattr(corpus_files, "_ROWS_PER_GROUP", 40)
    folder = write_sample_corpus(tmp_path / "corpus", "tiny", seed=3)
    file = pq.ParquetFile(corpus_files.planted_file(folder, "train"))
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [40, 40, 16]
    streamed = list(corpus_files.stream_planted(folder, "train", ["id", "lie"]))
    assert streamed == [{"id": row["id"], "lie": row["lie"]} for row in read_planted(folder, "train").rows]
    fresh = [sample.planted["id"] for sample in generate_rows(read_planted(folder, "train").config, "train")]
    assert [row["id"] for row in streamed] == fresh


def test_planted_facts_agree_with_each_other():
    config = replace(TINY, train=300, conflict_rate=0.6)
    table = personas.personas_of(config)
    for sample in generate_rows(config, "train"):
        row, facts = sample.row, sample.planted
        assert (facts["lie"] == "none") == (facts["lying_modality"] == "none") == (facts["kind"] != "conflicting")
        honest = [m for m in MODALITIES if m != facts["lying_modality"] and (m, facts["kind"]) != ("text", "silent")]
        assert {facts[f"latent_{m}"] for m in honest} == {facts["consensus"]}
        if facts["lie"] == "opposite":
            liar = facts["lying_modality"]
            # The words are what they are: where the text lies, it is the truth that is the opposite.
            assert np.sign(facts["consensus"] if liar == "text" else facts[f"latent_{liar}"]) == -np.sign(
                facts["latent_text"]
            )
        who = int(facts["persona"].removeprefix("persona"))
        for modality in FRAMES:
            assert facts[f"{modality}_gain"] == table.gain[modality][who]
            assert row[modality].dtype == np.float32 and np.isfinite(row[modality]).all()
            assert len(facts[f"{modality}_word"]) == len(row[modality])
            assert -1 <= min(facts[f"{modality}_word"]) and max(facts[f"{modality}_word"]) < len(facts["tokens"])


# --- the parts ---


def test_stems():
    assert [personas.stem(word) for word in ("looked", "look", "partly", "part", "was", "series", "thing")] == [
        "look", "look", "part", "part", "was", "seri", "thing",
    ]  # fmt: skip
    codes = dict(zip(lexicon.all_words(), personas.word_codes(TINY, "vision"), strict=True))
    np.testing.assert_array_equal(codes["partly"], codes["part"])
    assert not np.array_equal(codes["part"], codes["good"])
    channels = story.make_up(TINY, "vision")
    np.testing.assert_allclose(codes["good"] @ channels.sentiment[channels.live], 0, atol=1e-12)


def test_coarticulation_by_hand():
    """Two words from 0 to .3 and from .3 to .6 seconds, at ten frames per second; codes change over .12 seconds."""
    script = replace(
        clips.moment_script(TINY),
        tokens=[["good", "film"]], roles=[["cue", "filler"]], numbers=np.array([[0, 1]]),
        starts=np.array([[0.0, 0.3]]), ends=np.array([[0.3, 0.6]]), seconds=np.array([0.7]),
    )  # fmt: skip
    frames = clips.time_frames(script, 10.0)
    assert frames.word.tolist() == [0, 0, 0, 1, 1, 1, -1]
    rendered = frames.articulate(script.numbers, np.eye(2))
    # .05: ramp(.05/.12 + .5) = .91667; .25: 1 - ramp(-.05/.12 + .5) = .91667 and the next begins with .08333.
    by_hand = [[11 / 12, 0], [1, 0], [11 / 12, 1 / 12], [1 / 12, 11 / 12], [0, 1], [0, 11 / 12], [0, 1 / 12]]
    np.testing.assert_allclose(rendered, by_hand, atol=1e-12)
    swell = np.exp(-(((frames.position + 0.5) / 10 - 0.15) ** 2) / 2 / 0.16)
    np.testing.assert_allclose(frames.strength, 0.5 + swell)


def test_strengths_by_hand():
    # x / (x + 3) = 1/4 in both channels: x = 1.
    assert clips._root(np.ones(2), np.full(2, 3.0), 0.5, "part") == pytest.approx(1)
    assert clips._root(np.ones(2), np.full(2, 3.0), 0.0, "part") == 0
    with pytest.raises(MsaError, match="part cannot be had"):
        clips._root(np.ones(2), np.ones(2), 2.5, "part")


def test_personas_by_hand():
    config = preset("tiny", personas=4, persona_flips=0.5, persona_gain=0.0)
    table = personas.personas_of(config)
    np.testing.assert_allclose(table.chances, np.array([12, 6, 4, 3]) / 25)
    # One of each two in rank; of the first two it is the second.
    assert (table.gain["audio"] < 0).tolist() == [False, True, False, False]
    assert (table.gain["vision"] < 0)[:2].tolist() == [False, False] and (table.gain["vision"] < 0).sum() == 1
    for level in (*table.level.values(), table.tempo[:, None]):
        np.testing.assert_allclose(table.chances @ level, 0, atol=1e-12)
        np.testing.assert_allclose(table.chances @ level**2, 1)
    usual = personas.personas_of(TINY)
    flipped = {m: usual.gain[m] < 0 for m in FRAMES}
    assert {m: int(f.sum()) for m, f in flipped.items()} == {"audio": 40, "vision": 40}
    assert not (flipped["audio"] & flipped["vision"]).any()


def test_everything_can_be_turned_off():
    config = preset("tiny", **OFF)
    for strengths in clips.strengths_of(config).values():
        assert (strengths.articulation, strengths.persona, strengths.signal) == (0, 0, 0)
    script, _ = clips.make_clips(config, numbers_of(config, "train", 40))
    assert (script.liar == -1).all()
    assert (personas.personas_of(config).gain["audio"] == 1).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"seed": 5, "audio_articulation": 0.1, "vision_articulation": 0.4, "persona": 0.1, "sentiment": "strong"}],
)
def test_the_frames_hold_the_shares_that_were_asked_for(options):
    """Measured on the frames alone: what the mean frame of a word, and of a persona, explains of held-out frames."""
    config = preset("tiny", train=3000, test=1500, **options)
    train, test = (make_rows(config, numbers_of(config, split, config.size(split))) for split in ("train", "test"))
    labels = {
        name: np.array([clip.row["label"] for clip in rows]) for name, rows in (("train", train), ("test", test))
    }
    for modality in FRAMES:
        channels = story.make_up(config, modality)
        varying, live = int((~channels.dead).sum()), channels.live
        script, shown = clips.make_clips(config, numbers_of(config, "train", 3000))
        edges = shown[modality].frames.edges
        counts = np.diff(edges)
        values = shown[modality].values
        means = np.add.reduceat(values, edges[:-1]) / counts[:, None]
        within = values - np.repeat(means, counts, axis=0)
        words = np.add.reduceat(shown[modality].articulation, edges[:-1]) / counts[:, None]
        spoken = shown[modality].articulation - np.repeat(words, counts, axis=0)
        slope = (spoken * within).sum(axis=0) / np.maximum((spoken**2).sum(axis=0), 1e-12)
        assert slope == pytest.approx(np.ones(len(slope)), abs=0.1), "the words are in the frames as planted"
        explained = (spoken**2).sum(axis=0) / (within**2).sum(axis=0)
        assert explained.sum() / varying == pytest.approx(getattr(config, f"{modality}_articulation"), abs=0.02)

        # Between clips of one persona and of another, at ranks that come often enough.
        often = np.flatnonzero(np.bincount(script.persona, minlength=400) >= 30)
        seen = np.array([clip.row[modality].mean(axis=0) for clip in train])[:, live]
        levels = np.array([seen[script.persona == who].mean(axis=0) for who in often])
        planted = personas.personas_of(config).level[modality][often]
        fits = [np.corrcoef(levels[:, j], planted[:, j])[0, 1] for j in range(planted.shape[1])]
        assert min(fits) > 0.6
        total = shown[modality].persona.var(axis=0) / values.var(axis=0)
        assert total.sum() / varying == pytest.approx(config.persona, abs=0.03)

        time_means = {
            n: np.array([clip.row[modality].mean(axis=0) for clip in r]) for n, r in (("train", train), ("test", test))
        }
        probe = checks.ridge(time_means["train"], labels["train"], time_means["test"], 30.0)
        correlation = np.corrcoef(probe, labels["test"])[0, 1]
        assert correlation == pytest.approx(getattr(config, f"{modality}_sentiment"), abs=0.07)


def test_most_personas_are_met_a_few_times_in_the_study():
    config = preset("study")
    script, _ = clips.make_clips(config, numbers_of(config, "train", config.train))
    met = np.bincount(script.persona, minlength=400)
    assert ((met >= 2) & (met <= 6)).mean() > 0.5
    assert met[0] == pytest.approx(4000 / (1 / np.arange(1, 401)).sum(), rel=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 3}, "no version 3; give 1 or 2"),
        ({"audio_signal": 0.5}, "version 2 has no audio_signal; give audio_articulation"),
        ({"version": 1, "persona": 0.1}, "version 1 has no persona"),
        ({"sentiment": "strongest"}, "Did you mean 'strong'"),
        ({"vision_articulation": 1.0}, "vision_articulation is 1.0"),
        ({"persona_flips": 0.6}, "persona_flips is 0.6"),
        ({"personas": 0}, "personas is 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(MsaError, match=message):
        preset("tiny", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio_sentiment": 0.95}, "no linear probe reaches more than 0.[67]"),
        ({"audio_dim": 1}, "give audio_dim of at least 2, or audio_articulation=0"),
        ({"audio_articulation": 0.9}, "audio_articulation cannot be had"),
    ],
)
def test_strengths_that_cannot_be_had_are_named(options, message):
    with pytest.raises(MsaError, match=message):
        next(generate_rows(preset("tiny", **options), "train"))


# --- on disk ---


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_sample_corpus(tmp_path_factory.mktemp("sample") / "tiny", "tiny", seed=3, sentiment="strong")


def test_the_folder_passes_its_checks(corpus):
    measured = check_corpus(corpus)
    assert measured["clips"] == {"train": 96, "validation": 32, "test": 32}
    assert measured["strengths"] is None and measured["mechanisms"] is None, "too few clips to judge"
    assert set(measured["liars"]) == set(MODALITIES)
    json.dumps(measured)
    planted = read_planted(corpus, "test")
    assert planted.config == preset("tiny", seed=3, sentiment="strong")
    assert (planted.config.audio_sentiment, planted.config.vision_sentiment) == (0.65, 0.60)
    fresh = list(generate_rows(planted.config, "test"))
    for stored, clip in zip(planted.rows, fresh, strict=True):
        assert {k: stored[k] for k in ("id", "lie", "persona", "tempo")} == {
            k: clip.planted[k] for k in ("id", "lie", "persona", "tempo")
        }


def test_the_command_line_has_every_strength(tmp_path, capsys):
    folder = tmp_path / "corpus"
    given = [
        "--train",
        "40",
        "--vision-dim",
        "6",
        "--audio-fps",
        "3",
        "--sentiment",
        "weak",
        "--audio-sentiment",
        "0",
        "--persona-flips",
        "0",
    ]
    given += ["--personas", "50", "--persona", "0.1", "--audio-articulation", "0.2", "--conflict-rate", "0"]
    assert main(["sample-corpus", "--preset", "tiny", "--output", str(folder), *given]) == 0
    assert "104 clips in" in (out := capsys.readouterr().out) and "per second" in out
    written = json.loads((folder / "planted" / "corpus.json").read_text())
    assert written == preset(
        "tiny", seed=1111, train=40, vision_dim=6, audio_fps=3.0, audio_sentiment=0.0, vision_sentiment=0.25,
        persona_flips=0.0, personas=50, persona=0.1, audio_articulation=0.2, conflict_rate=0.0,
    ).to_dict()  # fmt: skip
    assert json.loads((folder / "planted" / "checks.json").read_text())["clips"]["train"] == 40
    assert (
        main(["sample-corpus", "--preset", "tiny", "--output", str(tmp_path / "no"), "--audio-sentiment", "0.9"]) != 0
    )
    assert not (tmp_path / "no").exists()


def test_the_text_model_knows_the_words_of_plans_and_descriptions():
    vocabulary = text_model.vocabulary(2)
    assert len(vocabulary) == len(set(vocabulary))
    words = " ".join(
        [*PLAN_FIELDS, *SENTIMENT_SCALE, "voice face very low high and nothing inner brow raiser"]
    ).split()
    assert set(words) <= set(vocabulary)
    assert "entity" not in text_model.vocabulary(1)
    assert tuple(lexicon.PLAN_FIELDS) == tuple(PLAN_FIELDS)


def split_of(config, split, count):
    rows = make_rows(config, numbers_of(config, split, count))
    return [clip.row for clip in rows], PlantedSplit(config, [clip.planted for clip in rows])


def test_checks_of_strengths_can_fail():
    config = preset("tiny", train=600, test=150, audio_articulation=0.1, persona=0.1)
    made = {split: split_of(config, split, count) for split, count in (("train", 600), ("test", 150))}
    rows = {split: rows for split, (rows, _) in made.items()}
    planted = {split: facts for split, (_, facts) in made.items()}
    _, wrong = checks._check_strengths(rows, planted)
    assert wrong == []
    claimed = replace(config, audio_articulation=0.35, persona_flips=0.1)
    _, wrong = checks._check_strengths(
        rows, {split: replace(facts, config=claimed) for split, facts in planted.items()}
    )
    assert any(line.startswith("audio_articulation explains") for line in wrong)
    _, wrong = checks._check_strengths(
        rows, {s: replace(f, config=replace(config, persona=0.4)) for s, f in planted.items()}
    )
    assert "frames of audio instead of" in wrong[0], "the tempo is another one"
    generator = np.random.default_rng(0)
    noise = [row | {"vision": generator.standard_normal(row["vision"].shape)} for row in rows["train"]]
    _, wrong = checks._check_strengths(rows | {"train": noise}, planted)
    assert {line.split()[0] for line in wrong} >= {"vision_articulation", "vision_persona"}


@pytest.mark.parametrize(("mean", "error", "wrong"), [(-0.05, 0.02, 0), (-0.05, 0.01, 1), (0.02, 0.01, 0)])
def test_what_knowledge_gains_is_judged_by_its_standard_error(monkeypatch, mean, error, wrong):
    found = {
        "label": {"complete": {"known": {"mse": 0.3}}},
        "knowledge": {"complete": {"known before inferred": {"mean": mean, "standard_error": error}}},
        "frames": {},
    }
    monkeypatch.setattr(checks, "mechanism_ceilings", lambda config, numbers: found)
    monkeypatch.setattr(checks, "_enough", lambda rows: True)
    _, failures = checks._find_mechanisms({"test": []}, {"test": PlantedSplit(TINY, [])})
    assert len(failures) == wrong


@pytest.mark.slow
def test_a_small_corpus_keeps_its_promises(tmp_path: Path):
    measured = check_corpus(write_sample_corpus(tmp_path / "small", "small"))
    found = measured["mechanisms"]
    assert found["label"]["complete"]["inferred"]["mse"] < found["label"]["complete"]["unknown"]["mse"]
    gained, errors = found["knowledge"]["complete"]["inferred before unknown"], found["label"]["complete"]
    assert (
        gained["mean"] == pytest.approx(errors["unknown"]["mse"] - errors["inferred"]["mse"]) and gained["mean"] > 0.05
    )
    assert 0 < gained["standard_error"] < gained["mean"]
    assert min(found["lies"].values()) > 0.75
    for hidden in found["frames"].values():
        assert hidden["half"]["words"]["posterior, persona inferred"] < hidden["half"]["no words"]["linear"]


# --- the ceilings ---


def everything(script, config):
    return mechanisms._everything(script, config)


def dense_log_density(config, modality, view, numbers, who, sentiment):
    """Log density of a clip's visible frames by one dense Gaussian, up to a constant."""
    channels, table = story.make_up(config, modality), personas.personas_of(config)
    strengths = clips.strengths_of(config)[modality]
    mean = strengths.persona * table.level[modality][who] + view.sounding @ (
        strengths.articulation * personas.word_codes(config, modality)[numbers]
    )
    shown = strengths.signal * table.gain[modality][who] * sentiment * view.strength
    residual = (view.values - mean - shown[:, None] * channels.sentiment[channels.live])[view.kept]
    times = np.flatnonzero(view.kept)
    covariance = 0.8 ** np.abs(times[:, None] - times) + story.SPEAKER_OFFSET**2
    return -0.5 * float((residual * np.linalg.solve(covariance, residual)).sum())


def test_the_ceiling_is_the_posterior_by_brute_force():
    """Every persona, kind of clip and lie is weighed by dense Gaussian densities."""
    config = preset(
        "tiny", personas=3, audio_dim=2, vision_dim=3, neutral_rate=0.0, silent_rate=0.0, conflict_rate=0.5
    )
    table = personas.personas_of(config)
    numbers = numbers_of(config, "test", 4)
    script, _ = clips.make_clips(config, numbers)
    generator = np.random.default_rng(0)
    kept = everything(script, config)
    for modality in FRAMES:
        kept[modality] = [generator.random(len(flags)) < 0.3 for flags in kept[modality]]
    grid = np.arange(-2.95, 3, 0.1)
    size = np.abs(grid) / 3
    half = size**0.5 * (1 - size)
    half /= half[grid > 0].sum()
    labels = story.expected_label(grid)
    for i, (views, known) in enumerate(inference.infer(config, numbers, kept, 1)):
        said = script.numbers[i, : len(script.tokens[i])]
        text = float(script.latent["text"][i])
        up = 0.2 + (0.6 if text < 0 else 0.0) if text else 0.5
        lie = half * np.where(grid > 0, up, 1 - up)
        mass = dict.fromkeys(("none", *MODALITIES), 0.0)
        weighed = 0.0
        peak = None
        for who in range(3):
            spread = clips.TEMPO_SPREAD
            off = script.tempo[i] - spread * np.sqrt(config.persona) * table.tempo[who]
            prior = np.log(table.chances[who]) - off**2 / 2 / spread**2 / (1 - config.persona)
            audio, vision = (
                np.array([dense_log_density(config, m, views[m], said, who, s) for s in (*grid, text)]) for m in FRAMES
            )
            peak = prior + audio.max() + vision.max() if peak is None else peak
            at = np.exp(prior - peak + audio[-1] + vision[-1])
            a, v = np.exp(audio[:-1] - audio[-1]), np.exp(vision[:-1] - vision[-1])
            here = story.expected_label(np.array(text))
            parts = {
                "none": (0.5 * at, here),
                "audio": (0.5 * 0.28 * at * (lie @ a), here),
                "vision": (0.5 * 0.28 * at * (lie @ v), here),
                "text": (0.5 * 0.44 * at * (lie @ (a * v)), (lie @ (a * v * labels)) / (lie @ (a * v))),
            }
            for name, (weight, label) in parts.items():
                mass[name] += weight
                weighed += weight * label
        total = sum(mass.values())
        assert known.label == pytest.approx(weighed / total, abs=0.03)
        for modality in MODALITIES:
            assert known.lies[modality] == pytest.approx(mass[modality] / total, abs=0.02)


def test_one_hidden_word_is_read_exactly():
    config = preset("tiny", **OFF | {"audio_articulation": 0.35, "vision_articulation": 0.2})
    numbers = numbers_of(config, "test", 1)
    script, shown = clips.make_clips(config, numbers)
    kept = everything(script, config)
    views = {m: inference._view(config, m, script, shown[m], 0, kept[m][0]) for m in FRAMES}
    said = script.numbers[0, : len(script.tokens[0])]
    visible = np.arange(len(said)) != 2
    _, hints = inference._Clip(config, script, 0, views, "inferred")._read_words(visible)
    truth = []
    for word in (0, 5, 100, int(said[2])):
        changed = np.where(visible, said, word)
        truth.append(sum(dense_log_density(config, m, views[m], changed, 0, 0.0) for m in FRAMES))
    found = np.log(hints[2, [0, 5, 100, int(said[2])]])
    np.testing.assert_allclose(found - found[-1], np.array(truth) - truth[-1], atol=1e-6)


def test_a_posterior_mean_is_linear_where_all_is_gaussian():
    """Nothing but noise, the video's offset and known words: both predictions of hidden frames are the same."""
    config = preset("tiny", **OFF | {"audio_articulation": 0.35, "vision_articulation": 0.2})
    errors = mechanisms._frame_errors(config, numbers_of(config, "test", 6), "audio", 0.5, True, 0)
    assert len(set(np.round(list(errors.values()), 9))) == 1
    assert 0 < errors["linear"] < 1


def test_ceilings_fall_with_what_is_hidden_and_rise_with_what_is_known():
    config = preset("small", test=120)
    rows = make_rows(config, numbers_of(config, "test", 120))
    planted = PlantedSplit(config, [clip.planted for clip in rows])
    labels = np.array([clip.row["label"] for clip in rows])
    nothing = {"text": [np.zeros(len(row["tokens"]), dtype=bool) for row in planted.rows]}
    for modality in FRAMES:
        nothing[modality] = [np.zeros(len(row[f"{modality}_word"]), dtype=bool) for row in planted.rows]
    predictions = {
        "known": ceiling_predictions(planted, {}, persona="known"),
        "inferred": ceiling_predictions(planted, {}),
        "unknown": ceiling_predictions(planted, {}, persona="unknown"),
        "text alone": ceiling_predictions(planted, {m: nothing[m] for m in FRAMES}),
        "nothing": ceiling_predictions(planted, nothing, samples=20),
    }
    errors = [float(((found - labels) ** 2).mean()) for found in predictions.values()]
    assert errors == sorted(errors)
    slope = np.cov(predictions["inferred"], labels)[0, 1] / predictions["inferred"].var()
    assert slope == pytest.approx(1, abs=0.15)
    assert errors[-1] == pytest.approx(labels.var(), rel=0.1)
    with pytest.raises(MsaError, match="Did you mean 'known'"):
        ceiling_predictions(planted, {}, persona="knwon")
    with pytest.raises(MsaError, match="Version 1 of the sample corpus has no personas"):
        ceiling_predictions(PlantedSplit(preset("tiny", version=1), []), {}, persona="known")
