"""Word error rate, for tests."""

import re


def word_error_rate(said: str, heard: str) -> float:
    """Substituted, left-out and added words, per word that was said; case and punctuation make no difference."""
    truth, guess = (re.findall(r"[\w']+", text.lower()) for text in (said, heard))
    if not truth:
        raise ValueError("nothing was said")
    costs = list(range(len(guess) + 1))
    for row, word in enumerate(truth, start=1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(guess, start=1):
            diagonal, costs[column] = (
                costs[column],
                min(costs[column] + 1, costs[column - 1] + 1, diagonal + (word != other)),
            )
    return costs[-1] / len(truth)
