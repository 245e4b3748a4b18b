"""Hidden states of a frozen text encoder, computed once for all rows instead of in every epoch."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_msa.data.collator import MsaCollator
from hf_msa.data.rows import MsaRows
from hf_msa.files import atomic_write
from hf_msa.models.modeling_msa import MsaPreTrainedModel


class TextStates:
    """Hidden states by row, read from a file that is mapped into memory.

    They lie one row after the other, without padding where the model leaves it out, in half precision: rounding to 11 bits
    is finer than what an encoder that runs in bfloat16 gives (8 bits), and large encoders on large data sets would need
    gigabytes more.

    Args:
        path: The file of `compute_text_states`.
    """

    def __init__(self, path: str | Path) -> None:
        tensors = load_file(path)
        self._flat, self._lengths = tensors["hidden"], tensors["lengths"]
        self._starts = self._lengths.cumsum(0) - self._lengths

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over all positions of all rows, each `(text width,)` float64."""
        mean = torch.stack([part.double().sum(0) for part in self._flat.split(65536)]).sum(0) / len(self._flat)
        squares = [(part.double() - mean).square().sum(0) for part in self._flat.split(65536)]
        return mean, (torch.stack(squares).sum(0) / len(self._flat)).sqrt()

    def __call__(self, rows: Tensor, length: int) -> Tensor:
        """Hidden states of some rows, zero at padding.

        Args:
            rows (`torch.LongTensor` of shape `(batch,)`): Which rows.
            length: Length that the batch is padded to.

        Returns:
            `torch.FloatTensor` of shape `(batch, length, text width)` on the device of `rows`.
        """
        chosen = rows.cpu()
        steps = torch.arange(length)
        real = steps < self._lengths[chosen, None]
        places = (self._starts[chosen, None] + steps).where(real, torch.zeros(()).long())
        return (self._flat[places] * real.unsqueeze(-1)).to(rows.device).float()


@torch.no_grad()
def compute_text_states(model: MsaPreTrainedModel, rows: MsaRows, collator: MsaCollator, path: str | Path) -> None:
    """Run the text encoder of `model` on all rows and write what it gives.

    Args:
        model: Any model; its encoder has to be in eval mode.
        rows: Tokenised rows.
        collator: How their batches are made. What it drops must not depend on the draw.
        path: The file to write.
    """
    # With padding as part of the result (and thus with fixed lengths) the encoder's output there counts too.
    lengths = (
        torch.from_numpy(rows.lengths["text"])
        if model.config.mask_padding
        else torch.full((len(rows),), model.config.text_max_length)
    )
    starts = lengths.cumsum(0) - lengths
    flat = torch.empty(int(lengths.sum()), model.config.text_config.hidden_size, dtype=torch.float16)
    # No DataLoader: one draws from the random state, which must be the same whether the file was there or not.
    for members in rows.batches(order=np.argsort(rows.lengths["text"], kind="stable")):
        batch = collator(members)
        hidden = model.encode_text(batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device))
        for index, states in zip((row["index"] for row in members), hidden.half().cpu(), strict=True):
            flat[starts[index] : starts[index] + lengths[index]] = states[: lengths[index]]
    with atomic_write(path) as temporary:
        save_file({"hidden": flat, "lengths": lengths}, temporary)
