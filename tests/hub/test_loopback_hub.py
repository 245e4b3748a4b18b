"""The loopback Hub against the real clients: if it were wrong, every test that stands on it would prove nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from loopback_hub import OWNER, READ_TOKEN, STRANGER_TOKEN, LoopbackHub

REPO = f"{OWNER}/thing"


@pytest.fixture
def api(loopback_hub: LoopbackHub) -> HfApi:
    return HfApi()


def upload(api: HfApi, files: dict[str, bytes], repo_id: str = REPO, **options: object) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="files", **options).oid


def test_the_account_behind_a_token(api: HfApi, loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.whoami()["name"] == OWNER
    assert HfApi(token=READ_TOKEN).whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_wrong").whoami()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(LocalTokenNotFoundError):
        HfApi().whoami()


def test_a_repository_is_created_once_and_deleted(api: HfApi) -> None:
    api.create_repo(REPO)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    api.create_repo(REPO, exist_ok=True)
    assert api.repo_exists(REPO)
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)


def test_a_stranger_a_reader_and_nobody_may_not_write(api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.create_repo(REPO)
    for token in (READ_TOKEN, STRANGER_TOKEN):
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi(token=token).create_repo(f"{OWNER}/other")
        with pytest.raises(HfHubHTTPError, match="403"):
            upload(HfApi(token=token), {"a.txt": b"a"})
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HfHubHTTPError, match="401"):
        upload(HfApi(), {"a.txt": b"a"})


def test_a_private_repository_is_hidden_from_others(api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.create_repo(REPO, private=True)
    assert api.model_info(REPO).private
    for token in (STRANGER_TOKEN, False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info(REPO)
    assert HfApi(token=READ_TOKEN).model_info(REPO).private


def test_files_come_back_as_they_went(api: HfApi, loopback_hub: LoopbackHub) -> None:
    api.create_repo(REPO)
    files = {"config.json": b"{}", "deep/er/model.safetensors": bytes(range(256)) * 40, "empty.txt": b""}
    oid = upload(api, files)
    for path, content in files.items():
        assert Path(hf_hub_download(REPO, path)).read_bytes() == content
    assert loopback_hub.count("PUT", "/lfs-storage/") == 1  # the weights alone
    assert api.model_info(REPO).sha == oid
    assert {entry.path for entry in api.list_repo_tree(REPO)} == {".gitattributes", "config.json", "deep", "empty.txt"}
    inside = list(api.list_repo_tree(REPO, "deep", recursive=True))
    assert [entry.path for entry in inside] == ["deep/er", "deep/er/model.safetensors"]
    assert inside[1].lfs.size == 10240
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "absent.json")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "absent"))


def test_part_of_a_file_can_be_read(api: HfApi) -> None:
    from huggingface_hub import HfFileSystem

    api.create_repo(REPO)
    upload(api, {"model.safetensors": bytes(range(100))})
    with HfFileSystem(skip_instance_cache=True).open(f"{REPO}/model.safetensors", block_size=16) as file:
        file.seek(90)
        assert file.read(5) == bytes(range(90, 95))


def test_history_branches_and_tags(api: HfApi) -> None:
    api.create_repo(REPO)
    first = upload(api, {"a.txt": b"one"})
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="next")
    upload(api, {"a.txt": b"two"})
    upload(api, {"a.txt": b"three"}, revision="next")
    contents = {
        rev: Path(hf_hub_download(REPO, "a.txt", revision=rev)).read_bytes() for rev in (first, "v1", "main", "next")
    }
    assert contents == {first: b"one", "v1": b"one", "main": b"two", "next": b"three"}
    refs = api.list_repo_refs(REPO)
    assert {ref.name for ref in refs.branches} == {"main", "next"} and refs.tags[0].target_commit == first
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="absent")
    with pytest.raises(HfHubHTTPError, match="412"):
        upload(api, {"a.txt": b"four"}, parent_commit=first)


def test_files_and_folders_can_be_deleted(api: HfApi, loopback_hub: LoopbackHub) -> None:
    api.create_repo(REPO)
    upload(api, {"a.txt": b"a", "old/b.txt": b"b", "old/c.txt": b"c"})
    api.create_commit(REPO, [CommitOperationDelete("a.txt"), CommitOperationDelete("old/")], commit_message="tidy")
    assert set(loopback_hub.files(REPO)) == {".gitattributes"}


def test_a_card_with_broken_metadata_is_refused(api: HfApi) -> None:
    ModelCard("---\nlicense: mit\n---\ntext").validate()
    with pytest.raises(ValueError, match="not valid YAML"):
        api._validate_yaml("---\na: [\n---\ntext")
    with pytest.raises(ValueError, match="model-index"):
        api._validate_yaml("---\nmodel-index:\n- name: x\n  results: [{task: {type: t}}]\n---\n")


@pytest.mark.parametrize("status", [None, 503])
def test_faults_strike_when_told_and_the_client_retries(
    api: HfApi, loopback_hub: LoopbackHub, status: int | None
) -> None:
    api.create_repo(REPO)
    loopback_hub.fail("PUT", "/lfs-storage/", times=2, status=status)
    upload(api, {"model.safetensors": b"weights" * 5000})
    assert loopback_hub.count("PUT", "/lfs-storage/") == 3
    assert loopback_hub.files(REPO)["model.safetensors"] == b"weights" * 5000


def test_data_sets_are_pushed_and_loaded_by_name(loopback_hub: LoopbackHub, run_python: Callable[..., str]) -> None:
    from datasets import Array2D, Dataset, DatasetDict, Features, Value

    features = Features({"id": Value("string"), "audio": Array2D((None, 2), "float32"), "label": Value("float32")})
    rows = {"id": ["a", "b"], "audio": [[[0.0, 1.0]] * 3, [[2.0, 3.0]]], "label": [1.0, -1.0]}
    train = Dataset.from_dict(rows, features=features)
    DatasetDict({"train": train, "test": train.select([1])}).push_to_hub(f"{OWNER}/rows", private=True)
    code = f"""
import datasets
loaded = datasets.load_dataset("{OWNER}/rows")
print(loaded.num_rows, loaded["test"][0]["audio"], loaded["train"].features["audio"].shape)
print(next(iter(datasets.load_dataset("{OWNER}/rows", split="test", streaming=True)))["id"])
"""
    assert run_python(code).splitlines() == ["{'train': 2, 'test': 1} [[2.0, 3.0]] (None, 2)", "b"]
    assert "DatasetNotFoundError" in run_python(
        f"import datasets\ntry: datasets.load_dataset('{OWNER}/rows')\nexcept Exception as e: print(type(e).__name__)",
        HF_TOKEN=STRANGER_TOKEN,
        HF_HUB_CACHE="elsewhere",
        HF_DATASETS_CACHE="elsewhere_too",
    )


def test_a_folder_of_shards_is_a_data_set(
    loopback_hub: LoopbackHub, tmp_path: Path, run_python: Callable[..., str]
) -> None:
    from datasets import Dataset

    folder = tmp_path / "prepared"
    folder.mkdir()
    Dataset.from_dict({"label": [0.5, -0.5]}).to_parquet(str(folder / "train-00000.parquet"))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train-*.parquet}\n---\n"
    )
    api = HfApi()
    api.create_repo(f"{OWNER}/shards", repo_type="dataset")
    api.upload_folder(repo_id=f"{OWNER}/shards", folder_path=folder, repo_type="dataset")
    code = f"import datasets; print(datasets.load_dataset('{OWNER}/shards', split='train')['label'][:])"
    assert run_python(code) == "[0.5, -0.5]"
