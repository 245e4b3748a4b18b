"""New splits by video: none shared, none empty, near their shares, the same every time, all rows kept."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_msa.data import load_msa
from hf_msa.data.prepare import prepare_dataset
from hf_msa.data.schema import SPLITS
from hf_msa.data.video_split import assign_videos
from hf_msa.errors import MsaError


@settings(max_examples=50)
@given(
    rows=st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 30), min_size=3, max_size=40),
    seed=st.integers(0, 5),
)
def test_every_video_has_one_split_and_no_split_is_empty(rows: dict[str, int], seed: int) -> None:
    assigned = assign_videos(rows, (0.6, 0.2, 0.2), seed)
    assert set(assigned) == set(rows)
    assert set(assigned.values()) == set(SPLITS)
    assert assigned == assign_videos(dict(reversed(rows.items())), (0.6, 0.2, 0.2), seed)


def test_many_videos_come_near_the_shares() -> None:
    rows = {f"v{number}": 1 + number % 7 for number in range(200)}
    found: Counter[str] = Counter()
    for video, split in assign_videos(rows, (0.5, 0.2, 0.3)).items():
        found[split] += rows[video]
    total = sum(rows.values())
    assert [found[split] / total for split in SPLITS] == pytest.approx([0.5, 0.2, 0.3], abs=0.01)


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.5, 0.5), (1.2, -0.1, -0.1)])
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(MsaError, match="give three above 0 that add up to 1"):
        assign_videos({"a": 1, "b": 1, "c": 1}, shares)


def test_too_few_videos_are_refused() -> None:
    with pytest.raises(MsaError, match="has 2 videos"):
        assign_videos({"a": 1, "b": 1}, (0.6, 0.2, 0.2))


def label_csv(folder: Path) -> Path:
    rows = [
        {"video_id": f"v{video}", "clip_id": clip, "text": f"v{video} c{clip}", "label": 0.5, "mode": "valid"}
        for video in range(6)
        for clip in range(video + 1)
    ]
    pd.DataFrame(rows).to_csv(folder / "label.csv", index=False)
    return folder / "label.csv"


def test_a_prepared_data_set_keeps_all_rows_under_new_splits(tmp_path: Path) -> None:
    report = prepare_dataset("mosi", label_csv(tmp_path), tmp_path / "data", split_by_video=(0.6, 0.2, 0.2))
    parts = {split: load_msa(str(tmp_path / "data"), split) for split in SPLITS}
    assert sum(map(len, parts.values())) == 21
    videos = [set(part["video_id"]) for part in parts.values()]
    assert all(videos) and sum(map(len, videos)) == len(set.union(*videos)) == 6
    assert sorted(text for part in parts.values() for text in part["text"]) == sorted(
        f"v{video} c{clip}" for video in range(6) for clip in range(video + 1)
    )
    assert "split anew by video" in report.markdown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "label.csv"]


@pytest.mark.parametrize("form", ["label.csv", "my.parquet", "parts"])
def test_data_that_names_no_split_is_split(tmp_path: Path, form: str) -> None:
    rows = pd.read_csv(label_csv(tmp_path)).drop(columns="mode").astype({"clip_id": str})
    source = tmp_path / form
    if form == "label.csv":
        rows.to_csv(source, index=False)
    elif form == "my.parquet":
        rows.to_parquet(source)
    else:
        source.mkdir()
        rows[:10].to_parquet(source / "monday.parquet")
        rows[10:].to_parquet(source / "tuesday.parquet")
    if form != "my.parquet":
        with pytest.raises(MsaError, match="no column 'mode'|named after no split"):
            prepare_dataset("custom", source, tmp_path / "data", label_family="mosi")
    prepare_dataset("custom", source, tmp_path / "data", label_family="mosi", split_by_video=(0.6, 0.2, 0.2))
    parts = {split: load_msa(str(tmp_path / "data"), split) for split in SPLITS}
    assert all(len(part) for part in parts.values()) and sum(map(len, parts.values())) == 21


def test_wrong_shares_leave_nothing_behind(tmp_path: Path) -> None:
    source = label_csv(tmp_path)
    with pytest.raises(MsaError, match="give three"):
        prepare_dataset("mosi", source, tmp_path / "data", split_by_video=(0.6, 0.2, 0.4))
    assert [path.name for path in tmp_path.iterdir()] == ["label.csv"]
