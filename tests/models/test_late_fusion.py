"""Late fusion: who votes, by hand, and what training leaves out."""

from itertools import combinations

import torch

from hf_msa.models.modeling_late_fusion import LateFusionForSentimentAnalysis
from tiny import tiny_batch, tiny_labels, tiny_late_fusion_config


def build(**fields: object) -> LateFusionForSentimentAnalysis:
    torch.manual_seed(0)
    return LateFusionForSentimentAnalysis(tiny_late_fusion_config(**fields)).eval()


def test_the_score_is_the_mean_of_those_that_were_observed() -> None:
    model = build()
    batch = tiny_batch(model.config)
    missing = {
        f"{name}_missing_mask": torch.zeros(batch[key].shape[:2], dtype=torch.bool)
        for name, key in (("text", "input_ids"), ("audio", "audio_values"), ("vision", "vision_values"))
    }
    missing["audio_missing_mask"][1] = True
    missing["text_missing_mask"][2] = missing["vision_missing_mask"][2] = True
    for mask in missing.values():
        mask[3] = True
    out = model(**{**batch, **missing})
    scores = out.modality_scores
    torch.testing.assert_close(
        out.logits[:, 0],
        torch.stack([scores[0].mean(), scores[1, [0, 2]].mean(), scores[2, 1], scores[3].mean()]),
    )
    columns = model.per_sample_outputs(out)
    assert torch.equal(columns["modality_scores_vision"], scores[:, 2])


def test_dropped_frames_count_for_nothing() -> None:
    model = build()
    batch = tiny_batch(model.config)
    mask = torch.zeros(batch["audio_values"].shape[:2], dtype=torch.bool)
    mask[:, 0] = True
    batch = {**batch, "audio_missing_mask": mask}
    changed = {**batch, "audio_values": batch["audio_values"].clone()}
    changed["audio_values"][:, 0] = 7.0
    assert torch.equal(model(**batch).logits, model(**changed).logits)
    mask = torch.zeros_like(mask)
    whole, other = ({**one, "audio_missing_mask": mask} for one in (batch, changed))
    assert not torch.equal(model(**whole).logits, model(**other).logits)


def test_training_leaves_votes_out_but_never_all() -> None:
    model = build(modality_dropout=0.6).train()
    batch, labels = tiny_batch(model.config), tiny_labels(model.config)
    seen = set()
    for _ in range(30):
        out = model(**batch, labels=labels)
        for score, row in zip(out.logits[:, 0], out.modality_scores, strict=True):
            means = {chosen: row[list(chosen)].mean() for size in (1, 2, 3) for chosen in combinations(range(3), size)}
            seen.add(next(chosen for chosen, mean in means.items() if torch.isclose(mean, score)))
    assert len(seen) == 7
    torch.testing.assert_close(out.loss, (out.logits[:, 0] - labels).square().mean())
    assert torch.equal(build(modality_dropout=0.0).train()(**batch).logits, build().eval()(**batch).logits)
