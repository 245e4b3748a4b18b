"""Pushing runs to the loopback Hub: what arrives, who may, what an interruption leaves behind."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertTokenizerFast

import hf_msa.hub.push
from hf_msa.errors import MsaError
from hf_msa.hub.cards import write_card
from hf_msa.hub.push import push
from hf_msa.hub.verify import check_side_files, probe_logits
from hf_msa.methods import METHODS
from hf_msa.models.feature_extraction_msa import MsaFeatureExtractor
from hf_msa.models.processing_msa import MsaProcessor
from loopback_hub import ORGANISATION, OWNER, READ_TOKEN, STRANGER, STRANGER_TOKEN, WRITE_TOKEN, LoopbackHub
from test_cards import RESULTS, RUN

REPO = f"{OWNER}/text-mosi"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "i", "really", "liked", "it", "no", "was", "long", "well", ","]


def save_run(
    folder: Path, seed: int = 1112, method: str = "text", ablation: str | None = None, vision_dim: int = 3
) -> Path:
    """Save a tiny trained run, as the trainer leaves it."""
    folder.mkdir(parents=True)
    config_class, model_class = METHODS[method].config_class, METHODS[method].model_class
    (folder / "words.txt").write_text("\n".join(WORDS))
    bert = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_config = {"model_type": "bert", "intermediate_size": 32, "max_position_embeddings": 50, **bert}
    torch.manual_seed(seed)
    fields = config_class.ABLATIONS[ablation] if ablation else {}
    model = model_class(config_class(text_config=text_config, audio_dim=5, vision_dim=vision_dim, **fields))
    model.save_pretrained(folder)
    tokenizer = BertTokenizerFast(str(folder / "words.txt"))
    extractor = MsaFeatureExtractor(audio_dim=5, vision_dim=vision_dim)
    lengths = {"text": 6, "audio": 5, "vision": 4}
    MsaProcessor(extractor, tokenizer, missing_lengths=lengths).save_pretrained(folder)
    (folder / "words.txt").unlink()
    (folder / "run.json").write_text(json.dumps({**RUN, "seed": seed, "method": method, "ablation": ablation}))
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return save_run(tmp_path / "runs" / "seed-1112")


def test_a_run_is_pushed_and_predicts_the_same(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    (run_folder.parent / "results.json").write_text(json.dumps(RESULTS))
    before = {path: path.read_bytes() for path in run_folder.iterdir() if path.is_file()}
    pushed = push(run_folder, REPO)
    assert pushed.verified and pushed.url == f"{loopback_hub.endpoint}/{REPO}"
    assert "logits equal" in str(pushed) and pushed.commit[:7] in str(pushed)
    assert before == {path: path.read_bytes() for path in run_folder.iterdir() if path.is_file()}

    assert len(loopback_hub.repo(REPO).commits) == 2  # the empty repository, and all files at once
    card = ModelCard.load(REPO)
    assert card.data.model_name == "text-mosi" and f'AutoModel.from_pretrained("{REPO}")' in card.text

    expected = probe_logits(str(run_folder))
    assert expected.shape == (3, 1) and expected.std() > 0
    assert torch.equal(probe_logits(REPO, revision=pushed.commit), expected)  # with the classes registered here


def test_only_what_belongs_to_a_checkpoint_is_published(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    words = "words of a data set"
    for name in ("predictions.parquet", "clues.json", "notes.txt", "optimizer.pt", "training_args.bin", "curves.png"):
        (run_folder / name).write_text(words)
    for name in ("stages/main/model.safetensors", "checkpoint-7/config.json", ".cache/config.json"):
        (run_folder / name).parent.mkdir(parents=True)
        (run_folder / name).write_text(words)
    run = {**RUN, "flags": {"logging_dir": "/home/someone/logs"}, "settings": {"text_model": "/home/someone/minilm"}}
    (run_folder / "run.json").write_text(json.dumps(run))
    (run_folder / "results.json").write_text(json.dumps(RESULTS))
    push(run_folder, REPO, verify=False)
    files = loopback_hub.files(REPO)
    code = {"configuration_msa.py", "configuration_text.py", "modeling_msa.py", "modeling_text.py", "msa_outputs.py"}
    code |= {"msa_inputs.py", "msa_label_families.py", "msa_files.py", "msa_missing.py"}
    code |= {"msa_attention.py", "msa_encoders.py", "msa_schema.py", "feature_extraction_msa.py", "processing_msa.py"}
    code |= {"msa_feature_sets.py", "msa_recordings.py", "msa_audio_features.py", "msa_pipeline.py"}
    code |= {"msa_face_features.py", "msa_openface.py", "msa_packages.py"}
    texts = {"README.md", "config.json", "processor_config.json", "results.json", "run.json", ".gitattributes"}
    texts.add("hf_msa_files.json")
    assert set(files) == code | texts | {"model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    everything = b"\n".join(files.values())
    assert words.encode() not in everything and b"someone" not in everything
    assert str(run_folder).encode() not in everything and b"/tmp/" not in everything
    assert json.loads(files["run.json"])["flags"] == {"logging_dir": "logs"}


def test_pushing_again_is_no_new_commit(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    first = push(run_folder, REPO, verify=False)
    assert push(run_folder, REPO, verify=False).commit == first.commit
    assert loopback_hub.count("PUT", "/lfs-storage/") == 1


def test_a_branch_can_be_pushed_to(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    push(run_folder, REPO, revision="next", verify=False)
    assert "model.safetensors" in loopback_hub.files(REPO, revision="next")
    assert "model.safetensors" not in loopback_hub.files(REPO)


def test_the_folder_above_will_do_for_a_single_run(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    push(run_folder.parent, REPO, verify=False)
    assert "model.safetensors" in loopback_hub.files(REPO)
    save_run(run_folder.parent / "seed-1111", seed=1111)
    with pytest.raises(MsaError, match="several runs .*seed-1111, seed-1112"):
        push(run_folder.parent, REPO)


@pytest.mark.parametrize("absent", ["run.json", "config.json", "model.safetensors", "processor_config.json"])
def test_an_unfinished_run_is_refused(loopback_hub: LoopbackHub, run_folder: Path, absent: str) -> None:
    (run_folder / absent).unlink()
    with pytest.raises(MsaError, match="not a finished run"):
        push(run_folder, REPO)
    assert loopback_hub.requests == []


@pytest.mark.parametrize("name", ["mine", "a/b/c", "tester/", "tester/a b", "tester/a--b", "tester/-a"])
def test_a_wrong_name_is_refused(loopback_hub: LoopbackHub, run_folder: Path, name: str) -> None:
    with pytest.raises(MsaError, match="give ORG/NAME"):
        push(run_folder, name)
    assert loopback_hub.requests == []


def test_without_a_token_it_says_how_to_get_one(
    loopback_hub: LoopbackHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(MsaError, match="no Hub token.*/settings/tokens.*hf auth login"):
        push(run_folder, REPO)


@pytest.mark.parametrize(
    ("token", "message"), [("hf_wrong", "does not accept this token"), (READ_TOKEN, f"of {OWNER} may only read")]
)
def test_with_a_wrong_token_it_says_so(loopback_hub: LoopbackHub, run_folder: Path, token: str, message: str) -> None:
    with pytest.raises(MsaError, match=message):
        push(run_folder, REPO, token=token)
    assert loopback_hub.repos == {}


def test_somebody_elses_name_is_refused(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    message = f"{STRANGER} may not write to {REPO} .*choose a name under {STRANGER},"
    with pytest.raises(MsaError, match=message):
        push(run_folder, REPO, token=STRANGER_TOKEN)  # nobody has it yet
    HfApi().create_repo(REPO)
    with pytest.raises(MsaError, match=message):
        push(run_folder, REPO, token=STRANGER_TOKEN)  # somebody has it
    loopback_hub.repo(REPO).private = True
    with pytest.raises(MsaError, match=message):
        push(run_folder, REPO, token=STRANGER_TOKEN)  # somebody has it in private
    with pytest.raises(MsaError, match=f"choose a name under {OWNER} or {ORGANISATION},"):
        push(run_folder, f"{STRANGER}/text-mosi")
    assert len(loopback_hub.repo(REPO).commits) == 1


@pytest.mark.slow
def test_a_private_push_is_verified_too(
    loopback_hub: LoopbackHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")  # the clean process has the one that was given
    assert push(run_folder, REPO, private=True, token=WRITE_TOKEN).verified


def test_a_private_push_stays_private(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    push(run_folder, REPO, private=True, verify=False)
    assert loopback_hub.repo(REPO).private
    public = f"{ORGANISATION}/open"
    HfApi().create_repo(public)
    with pytest.raises(MsaError, match="exists already and is public"):
        push(run_folder, public, private=True)
    assert len(loopback_hub.repo(public).commits) == 1


def test_without_a_network_it_says_so(
    loopback_hub: LoopbackHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MsaError, match="did not get through: .*try again"):
        push(run_folder, REPO)


def test_offline_mode_is_named(loopback_hub: LoopbackHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    try:
        with pytest.raises(MsaError, match="unset HF_HUB_OFFLINE"):
            push(run_folder, REPO)
    finally:
        huggingface_hub.close_session()


@pytest.mark.parametrize("status", [None, 503])
@pytest.mark.parametrize(("method", "path"), [("PUT", "/lfs-storage/"), ("POST", "/commit/")])
def test_an_interrupted_push_leaves_the_old_version_and_can_be_resumed(
    loopback_hub: LoopbackHub, run_folder: Path, tmp_path: Path, method: str, path: str, status: int | None
) -> None:
    old = push(run_folder, REPO, verify=False).commit
    old_logits = probe_logits(str(run_folder))
    newer = save_run(tmp_path / "newer" / "seed-5", seed=5)

    loopback_hub.fail(method, path, status=status)
    with pytest.raises(MsaError, match="nothing is half-written there"):
        push(newer, REPO, verify=False)
    assert HfApi().model_info(REPO).sha == old
    (tmp_path / "snapshot").mkdir()
    for name, content in loopback_hub.files(REPO).items():
        (tmp_path / "snapshot" / name).write_bytes(content)
    assert torch.equal(probe_logits(str(tmp_path / "snapshot")), old_logits)

    loopback_hub.faults.clear()
    loopback_hub.requests.clear()
    assert push(newer, REPO, verify=False).commit == HfApi().model_info(REPO).sha != old
    assert loopback_hub.files(REPO)["model.safetensors"] == (newer / "model.safetensors").read_bytes()
    # Where the weights had arrived before the commit failed, they are not sent again.
    assert loopback_hub.count("PUT", "/lfs-storage/") == (path == "/lfs-storage/")


@pytest.mark.slow
def test_a_killed_push_can_be_resumed(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    """The process dies at the commit: weights are there, the repository is empty, the next push finishes it."""
    code = (
        "import os, huggingface_hub._commit_api as commits\n"
        "commits._send_commit = lambda **options: os._exit(9)\n"
        "from hf_msa.hub.push import push\n"
        f"push({str(run_folder)!r}, {REPO!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    assert set(loopback_hub.files(REPO)) == {".gitattributes"}
    loopback_hub.requests.clear()
    push(run_folder, REPO, verify=False)
    assert loopback_hub.count("PUT", "/lfs-storage/") == 0
    assert loopback_hub.files(REPO)["model.safetensors"] == (run_folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_weights_that_arrive_changed_are_noticed(
    loopback_hub: LoopbackHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push_then_train_on(*arguments: object) -> None:
        weights = load_file(run_folder / "model.safetensors")
        weights["regressor.bias"] += 1.0
        save_file(weights, run_folder / "model.safetensors", metadata={"format": "pt"})
        verify(*arguments)

    verify = hf_msa.hub.push._verify
    monkeypatch.setattr(hf_msa.hub.push, "_verify", push_then_train_on)
    with pytest.raises(MsaError, match=r"predicts otherwise than .*off by 1\)"):
        push(run_folder, REPO)


def test_code_that_does_not_load_elsewhere_is_noticed(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    """With hf_msa installed nobody would see it: the registered class is used in place of what was pushed."""
    path = run_folder / "modeling_text.py"
    path.write_text("import hf_msa\n" + path.read_text())
    with pytest.raises(MsaError, match="does not load in a clean process .*hf_msa"):
        push(run_folder, REPO)


@pytest.mark.slow
def test_the_script_refuses_the_registered_classes(
    loopback_hub: LoopbackHub, run_folder: Path, tmp_path: Path
) -> None:
    """A repository without code must not pass because hf_msa happens to be installed."""
    for name in ("modeling_text.py", "hf_msa_files.json"):
        (run_folder / name).unlink()
    with pytest.raises(MsaError, match="does not load in a clean process"):
        push(run_folder, REPO)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "text"])
def test_every_method_can_be_pushed(loopback_hub: LoopbackHub, tmp_path: Path, method: str) -> None:
    assert push(save_run(tmp_path / "seed-1", seed=1, method=method), REPO).verified


@pytest.mark.parametrize(("method", "ablation"), [("tcmr", None), ("tcmr", "ub")])
def test_a_multimodal_checkpoint_has_a_card_and_can_be_probed(
    tmp_path: Path, method: str, ablation: str | None
) -> None:
    """An upper bound, too, which predicts only with labels."""
    folder = save_run(tmp_path / "seed-1", seed=1, method=method, ablation=ablation)
    logits = probe_logits(str(folder))
    assert logits.shape == (3, 1) and logits.isfinite().all() and logits.std() > 0
    config = METHODS[method].config_class.from_pretrained(folder)
    assert ("not a usable model" in write_card(folder).read_text()) == config.is_oracle


def test_a_side_file_that_arrived_otherwise_is_noticed(loopback_hub: LoopbackHub, run_folder: Path) -> None:
    pushed = push(run_folder, REPO, verify=False)
    digest = hashlib.sha256((run_folder / "config.json").read_bytes()).hexdigest()
    check_side_files(REPO, pushed.commit, {"config.json": digest})
    with pytest.raises(SystemExit, match=r"config\.json is not what was sent"):
        check_side_files(REPO, pushed.commit, {"config.json": digest[::-1]})


def test_a_side_file_that_cannot_be_fetched_is_not_taken_for_absent(
    loopback_hub: LoopbackHub, run_folder: Path
) -> None:
    push(run_folder, REPO, verify=False)
    model = AutoModel.from_pretrained(REPO)
    assert model.stored_file("no_such_file.json") is None
    file = model.stored_file("config.json")
    assert file is not None and file.is_file() and model.stored_file("x.json", "adapter") is None
    for status in (401, 403, 429, 500, None):
        loopback_hub.fail("HEAD", "other.json", status=status)
        with pytest.raises(ValueError, match="'other.json' of the checkpoint .* could not be fetched .*try again"):
            model.stored_file("other.json")
        loopback_hub.faults.clear()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"\xff"),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "hf_msa_text", "audio_dim": "many"}'),
        ("config.json", b'{"model_type": "hf_msa_text", "label_family": {"name": 3}}'),
        ("run.json", b"[]"),
        ("run.json", b'{"method": "text", "seed": 1, "recipe": "x", "dataset": 3, "versions": {}}'),
        ("results.json", b'{"schema_version": 2}'),
    ],
)
def test_what_is_damaged_is_not_pushed(loopback_hub: LoopbackHub, run_folder: Path, name: str, content: bytes) -> None:
    (run_folder / name).write_bytes(content)
    with pytest.raises(MsaError) as caught:
        push(run_folder, REPO)
    assert "\n" not in str(caught.value) and str(run_folder) in str(caught.value)
    assert loopback_hub.requests == []
