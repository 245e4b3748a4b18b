"""Words of tokenised texts: finding them, what is known of them, and running a text model with some of them masked."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_msa.analysis.common.split_labels import planted_rows
from hf_msa.data.missing import pad_rows
from hf_msa.data.rows import MsaRows
from hf_msa.data.schema import SPLITS
from hf_msa.errors import MsaError

IntArray = NDArray[np.int64]

_VARIANTS_AT_ONCE = 256


@dataclass(frozen=True)
class Words:
    """What each row's tokens spell.

    Attributes:
        tokens: Per row its token ids (T,), special tokens included.
        word_of: Per row the number of the word that each token belongs to (T,), -1 for a special token.
        names: Per row its words, lower-case.
    """

    tokens: list[IntArray]
    word_of: list[IntArray]
    names: list[list[str]]

    def __add__(self, other: "Words") -> "Words":
        return Words(self.tokens + other.tokens, self.word_of + other.word_of, self.names + other.names)


def split_words(rows: MsaRows, tokenizer: PreTrainedTokenizerBase, pieces: bool = False) -> Words:
    """Find the words of tokenised rows; what was cut off behind the longest length is not among them.

    Args:
        rows: Tokenised by `tokenizer`.
        tokenizer: The model's.
        pieces: Let every word piece count as a word.

    Raises:
        MsaError: If words are asked for and the tokenizer does not know them.
    """
    members = [rows[index] for index in range(len(rows))]
    tokens = [np.asarray(row["input_ids"], dtype=np.int64) for row in members]
    if pieces:
        special = [np.asarray(row["special_tokens_mask"], dtype=bool) for row in members]
        word_of = [np.where(marks, -1, np.cumsum(~marks) - 1) for marks in special]
        names = [
            list(tokenizer.convert_ids_to_tokens(ids[~marks].tolist()))
            for ids, marks in zip(tokens, special, strict=True)
        ]
        return Words(tokens, word_of, names)
    if not tokenizer.is_fast:
        raise MsaError("This checkpoint's tokenizer does not say where words begin; use --pieces.")
    word_of, names = [], []
    texts = [row["text"] for row in members]
    encoded = tokenizer(
        texts, return_offsets_mapping=True, truncation=True, max_length=max(map(len, tokens), default=1)
    )
    for index, text in enumerate(texts):
        # A tokenizer counts words from 0, but may leave numbers out.
        numbers: dict[int, int] = {}
        spans: list[tuple[int, int]] = []
        row = np.full(len(tokens[index]), -1, dtype=np.int64)
        places = zip(encoded.word_ids(index), encoded["offset_mapping"][index], strict=True)
        for position, (word, (start, end)) in enumerate(places):
            if word is None:
                continue
            row[position] = numbers.setdefault(word, len(numbers))
            if row[position] == len(spans):
                spans.append((start, end))
            else:
                spans[-1] = (spans[-1][0], end)
        word_of.append(row)
        names.append([text[start:end].strip().lower() for start, end in spans])
    return Words(tokens, word_of, names)


def run_text(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    words: Words,
    rows: NDArray[np.int64],
    dropped: Callable[[NDArray[np.int64], IntArray], NDArray[np.bool_]],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Run a model on many variants of texts, in which some words are replaced by the unknown token, in large batches.

    Args:
        model: From token ids and attention mask, (B, L) each, to (B, K).
        words: The texts.
        rows: Per variant the number of its text, (V,).
        dropped: From numbers of variants (B,) and the padded word numbers of their tokens (B, L), -1 for special
            tokens and padding, to the tokens that are replaced, (B, L).
        tokenizer: Gives the unknown and the padding token.
        device: Where the model is.

    Returns:
        (V, K), in the order of the variants.
    """
    lengths = np.array([len(ids) for ids in words.tokens], dtype=np.int64)
    order = np.argsort(lengths[rows], kind="stable")
    outputs = []
    steps = range(0, len(order), _VARIANTS_AT_ONCE)
    for start in tqdm(steps, desc="masked texts", leave=False, disable=len(steps) < 2 or None):
        variants = order[start : start + _VARIANTS_AT_ONCE]
        members = rows[variants]
        ids = pad_rows([words.tokens[i] for i in members], lengths[members], int(tokenizer.pad_token_id or 0))
        numbers = pad_rows([words.word_of[i] for i in members], lengths[members], -1)
        real = np.arange(ids.shape[1]) < lengths[members][:, None]
        ids = np.where(dropped(variants, numbers) & (numbers >= 0), tokenizer.unk_token_id, ids)
        with torch.inference_mode():
            made = model(torch.from_numpy(ids).to(device), torch.from_numpy(real.astype(np.int64)).to(device))
        outputs.append(made.float().cpu().numpy())
    if not outputs:
        return np.empty((0, 0), dtype=np.float32)
    results: NDArray[np.float32] = np.concatenate(outputs)[np.argsort(order)]
    return results


def planted_roles(data: str) -> dict[str, str] | None:
    """The role of every word of a sample corpus (cue, negator, filler ...); None for other data."""
    return {
        token: role
        for split in SPLITS
        for row in planted_rows(data, split, ("tokens", "roles"))
        for token, role in zip(row["tokens"], row["roles"], strict=True)
    } or None


def read_word_list(path: Path) -> list[str]:
    """Read words from a text file, one per line, or from the ``word`` column of a CSV table.

    Raises:
        MsaError: If there is no such file, it has no such column, or no word.
    """
    if not path.is_file():
        raise MsaError(
            f"There is no word list at {str(path)!r}; give a text file with one word per line, or a clues.csv."
        )
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        table = csv.DictReader(io.StringIO(text, newline=""))
        if "word" not in (table.fieldnames or ()):
            raise MsaError(
                f"The table {str(path)!r} has no column 'word'; it has {', '.join(table.fieldnames or ())}."
            )
        words = [row["word"] for row in table]
    else:
        words = text.splitlines()
    chosen = list(dict.fromkeys(word.strip().lower() for word in words if word.strip()))
    if not chosen:
        raise MsaError(f"The word list {str(path)!r} is empty; write one word per line.")
    return chosen
