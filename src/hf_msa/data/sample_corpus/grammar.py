"""The sample corpus's sentences: the rule that scores them, and the automaton that writes them.

A sentence is a path through a small finite automaton. Its states say which place of a clause the next word takes, how
many sentiment words were said, whether a contrast ("but") lies ahead or behind, and the clip's tone. Because it is an
automaton, the sentence that a partly hidden text may have been can be sampled exactly (`SentenceGrammar.complete`):
this is what the corpus's ceiling rests on.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_msa.data.sample_corpus import lexicon

LOWEST, HIGHEST = -3.0, 3.0
MIN_WORDS, MAX_WORDS = 5, 40
MAX_CUES = 4

#: What a word does: the names that the side table of planted facts uses.
ROLES = ("cue", "negator", "intensifier", "diminisher", "contrast", "disfluency", "filler")

#: Sign and strength of what a clip's words express; "silent" says nothing at all.
TONES = ("silent", "weak+", "medium+", "strong+", "weak-", "medium-", "strong-")
_SIGN = np.array([0, 1, 1, 1, -1, -1, -1])
_STRENGTH = np.array([0, 0, 1, 2, 0, 1, 2])
#: Per strength: the valence around which cue words are chosen, and how often a modifier intensifies.
_TYPICAL_VALENCE = (0.5, 1.1, 1.7)
_VALENCE_SPREAD = 0.4
_COMMON_FACTOR = 3.0
_INTENSIFY = (0.3, 0.6, 0.85)
#: Share of sentiment words that go with the clip's tone; the rest contradicts it.
_COHERENCE = 0.9
#: How much likelier a further cue word is made, by how many were said.
_MORE_CUES = (1.0, 0.9, 0.8, 0.6)


def score_tokens(tokens: Sequence[str]) -> tuple[float, list[str], list[float]]:
    """Score a sentence by the corpus's rule, and say what each word does.

    The rule: every cue word has a valence. An intensifier or diminisher right before it multiplies it, and a negator
    right before that (or right before the cue) multiplies it by a negative factor below one: it flips and dampens. A
    modifier with no cue behind it does nothing. At each contrast word, all that was said before counts 0.4. The sum,
    cut to [-3, 3], is the score. Words outside the lexicon, such as ``[UNK]``, are fillers.

    A word's contribution is what it changes: a cue gives its weighted valence, a modifier the change that it makes to
    its cue (the intensifier or diminisher first, then the negator), a contrast word the change that it makes to what
    was said before. Contributions sum to the score before it is cut.

    Args:
        tokens: The words, lower-case, as `str.split` gives them.

    Returns:
        The score in [-3, 3]; one role of `ROLES` per word; one contribution per word, in label units.
    """
    roles = [_ROLE_OF.get(token, "filler") for token in tokens]
    contributions = [0.0] * len(tokens)
    said = 0.0
    for i, (token, role) in enumerate(zip(tokens, roles, strict=True)):
        if role == "cue":
            value = lexicon.CUES[token]
            contributions[i] = value
            before = i - 1
            if before >= 0 and roles[before] in ("intensifier", "diminisher"):
                contributions[before] = value * (_FACTOR_OF[tokens[before]] - 1)
                value *= _FACTOR_OF[tokens[before]]
                before -= 1
            if before >= 0 and roles[before] == "negator":
                contributions[before] = value * (_FACTOR_OF[tokens[before]] - 1)
                value *= _FACTOR_OF[tokens[before]]
            said += value
        elif role == "contrast":
            contributions[i] = said * (lexicon.CONTRAST_WEIGHT - 1)
            said *= lexicon.CONTRAST_WEIGHT
    return min(max(said, LOWEST), HIGHEST), roles, contributions


_FACTOR_OF = lexicon.NEGATORS | lexicon.INTENSIFIERS | lexicon.DIMINISHERS
_ROLE_OF: dict[str, str] = {
    **dict.fromkeys(lexicon.CUES, "cue"),
    **dict.fromkeys(lexicon.NEGATORS, "negator"),
    **dict.fromkeys(lexicon.INTENSIFIERS, "intensifier"),
    **dict.fromkeys(lexicon.DIMINISHERS, "diminisher"),
    **dict.fromkeys(lexicon.CONTRASTS, "contrast"),
    **dict.fromkeys((*lexicon.DISFLUENCIES, *lexicon.DISFLUENT_PAIR), "disfluency"),
}

# A node is one place in a clause. A cue behind a negator is another place than a bare one: "not bad" is praise.
_FILLERS_AT: dict[str, tuple[str, ...]] = {
    "opener": lexicon.OPENERS,
    "hesitation": lexicon.DISFLUENCIES,
    "pause": lexicon.DISFLUENCIES,
    "you": lexicon.DISFLUENT_PAIR[:1],
    "know": lexicon.DISFLUENT_PAIR[1:],
    "determiner": lexicon.DETERMINERS,
    "subject": lexicon.COMMON_NOUNS,
    "copula": lexicon.COPULAS,
    "holder": lexicon.PRONOUNS,
    "opinion": lexicon.OPINION_VERBS,
    "it": lexicon.IT,
    "conjunction": lexicon.CONJUNCTIONS,
    "contrast": lexicon.CONTRASTS,
    "actor": lexicon.PRONOUNS,
    "action": lexicon.ACTION_VERBS,
    "which": lexicon.DETERMINERS,
    "object": lexicon.COMMON_NOUNS,
    "time": lexicon.TIMES,
    "preposition": lexicon.PREPOSITIONS,
    "possessive": lexicon.POSSESSIVES,
    "companion": lexicon.COMPANIONS,
}
_TOPICAL_NODES = ("subject", "object")
_CLAUSE = {"determiner": 0.3, "holder": 0.2, "it": 0.1, "actor": 0.25, "hesitation": 0.08, "you": 0.07}
_JUDGEMENT = {"cue": 0.5, "modifier": 0.3, "negator": 0.07}
_FLOW: dict[str, dict[str, float]] = {
    "start": {"opener": 0.15} | _CLAUSE,
    "opener": _CLAUSE,
    "hesitation": {"determiner": 0.4, "holder": 0.25, "actor": 0.35},
    "you": {"know": 1.0},
    "know": {"determiner": 0.4, "holder": 0.25, "actor": 0.35},
    "determiner": {"subject": 1.0},
    "subject": {"copula": 1.0},
    "copula": {"pause": 0.07, "preposition": 0.08} | _JUDGEMENT,
    "pause": _JUDGEMENT,
    "holder": {"opinion": 1.0},
    "opinion": {"it": 0.6, "determiner": 0.4},
    "it": {"copula": 1.0},
    "negator": {"negated cue": 0.7, "negated modifier": 0.3},
    "modifier": {"cue": 1.0},
    "negated modifier": {"negated cue": 1.0},
    "cue": {"conjunction": 0.3, "contrast": 1.0, "preposition": 0.1, "time": 0.1, "end": 0.5},
    "negated cue": {"conjunction": 0.3, "contrast": 1.0, "preposition": 0.1, "time": 0.1, "end": 0.5},
    "conjunction": _CLAUSE,
    "contrast": _CLAUSE,
    "actor": {"action": 1.0},
    "action": {"which": 1.0},
    "which": {"object": 1.0},
    "object": {"conjunction": 0.35, "preposition": 0.25, "time": 0.25, "end": 0.15},
    "time": {"conjunction": 0.5, "preposition": 0.2, "end": 0.3},
    "preposition": {"possessive": 1.0},
    "possessive": {"companion": 0.7, "object": 0.3},
    "companion": {"conjunction": 0.5, "time": 0.2, "end": 0.3},
}
_CUE_NODES = ("cue", "negated cue")
_MODIFIER_NODES = ("modifier", "negated modifier")
# A clip without a contrast stays in "plain". One with a contrast is "before" it, then "behind" it without and at
# last "answered" with a cue in the later clause: only then may it end.
_PLAIN, _BEFORE, _BEHIND, _ANSWERED = range(4)


class _State(NamedTuple):
    tone: int
    phase: int
    cues: int
    node: str


@dataclass(frozen=True)
class Completions:
    """Sentences that partly hidden ones may have been, sampled from the grammar.

    Attributes:
        scores: (B, M) float, the score of each sampled sentence in [-3, 3].
        silent: (B, M) bool, whether its tone is "silent".
        words: Per sentence (M, n), the words as positions in `lexicon.all_words`; only where there were hints.
    """

    scores: NDArray[np.float64]
    silent: NDArray[np.bool_]
    words: list[NDArray[np.int64]]


class SentenceGrammar:
    """Writes sentences of a given tone and length, and completes partly hidden ones.

    Args:
        contrast_rate: Share of sentences, among those that are not silent, with a contrast.
    """

    def __init__(self, contrast_rate: float) -> None:
        self._contrast_rate = contrast_rate
        self._states: list[_State] = []
        self._starts: dict[tuple[int, int], int] = {}
        self._successors, self._weights, self._ends = self._build_states()
        self._emitters = _emitters()
        self._emitter_of = np.array([self._emitter_name(state) for state in self._states])
        self._emitter_names, self._emitter_number = np.unique(self._emitter_of, return_inverse=True)
        self._free = self._free_futures()
        self._steps: dict[tuple[int, int], tuple[list[int], list[float]]] = {}
        self._lists: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], dict[str, int]] | None = None

    # --- the automaton ---

    def _build_states(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Walk all states that can be reached; return successors (S, K), their weights (S, K) and end weights (S,)."""
        index: dict[_State, int] = {}
        queue: list[_State] = []

        def number(state: _State) -> int:
            if state not in index:
                index[state] = len(index)
                queue.append(state)
            return index[state]

        for tone in range(len(TONES)):
            for phase in (_PLAIN, _BEFORE) if tone else (_PLAIN,):
                self._starts[tone, phase] = number(_State(tone, phase, 0, "start"))
        moves: list[list[tuple[int, float]]] = []
        ends: list[float] = []
        while len(moves) < len(queue):
            state = queue[len(moves)]
            here: list[tuple[int, float]] = []
            end = 0.0
            for node, weight in _FLOW[state.node].items():
                if node == "end":
                    end = weight if state.tone == 0 or (state.cues and state.phase in (_PLAIN, _ANSWERED)) else 0.0
                    continue
                following = self._follow(state, node)
                if following is not None:
                    more = _MORE_CUES[state.cues] if node in _CUE_NODES else 1.0
                    here.append((number(following), weight * more))
            moves.append(here)
            ends.append(end)
        self._states = queue
        width = max(len(here) for here in moves)
        successors = np.zeros((len(moves), width), dtype=np.int64)
        weights = np.zeros((len(moves), width))
        for s, here in enumerate(moves):
            for k, (successor, weight) in enumerate(here):
                successors[s, k], weights[s, k] = successor, weight
        return successors, weights, np.array(ends)

    @staticmethod
    def _follow(state: _State, node: str) -> _State | None:
        """Return the state that `node` leads to, or None where the grammar forbids it."""
        tone, phase, cues, _ = state
        if node in ("cue", "modifier", "negator", "pause") and (tone == 0 or cues == MAX_CUES):
            return None
        if node == "contrast":
            return _State(tone, _BEHIND, cues, node) if phase == _BEFORE and 0 < cues < MAX_CUES else None
        if node in _CUE_NODES:
            return _State(tone, _ANSWERED if phase == _BEHIND else phase, cues + 1, node)
        return _State(tone, phase, cues, node)

    @staticmethod
    def _emitter_name(state: _State) -> str:
        if state.node in _CUE_NODES:
            # Before a contrast the opposite of the clip's tone is said, and a negated cue says the opposite of itself.
            opposite = (state.phase == _BEFORE) != (state.node == "negated cue")
            sign = _SIGN[state.tone] * (-1 if opposite else 1)
            return f"cue {sign:+d} {_STRENGTH[state.tone]}"
        if state.node in _MODIFIER_NODES:
            return f"modifier {_STRENGTH[state.tone]}"
        return state.node

    def _step_back(self, futures: NDArray[np.float64]) -> NDArray[np.float64]:
        """From the weight of all futures after each state (..., S), go one word back: (..., S)."""
        total = np.zeros_like(futures)
        for k in range(self._successors.shape[1]):
            total += self._weights[:, k] * futures[..., self._successors[:, k]]
        return total

    def _free_futures(self) -> NDArray[np.float64]:
        """Return (MAX_WORDS + 1, S): the weight of all ways to end after exactly r more words."""
        futures = np.zeros((MAX_WORDS + 1, len(self._states)))
        futures[0] = self._ends
        for remaining in range(1, MAX_WORDS + 1):
            futures[remaining] = self._step_back(futures[remaining - 1])
        return futures

    # --- writing ---

    def write(self, generator: np.random.Generator, tone: int, words: int, topic: str) -> list[str]:
        """Write one sentence.

        Args:
            generator: Where the draws come from.
            tone: Index into `TONES`.
            words: How many words, 5 to 40.
            topic: A key of `lexicon.TOPICS`.
        """
        draws = generator.random((words, 2)).tolist()
        contrast = generator.random() < self._contrast_rate and tone != 0 and words >= _SHORTEST_CONTRAST
        state = self._starts[tone, _BEFORE if contrast else _PLAIN]
        tokens = []
        for i, (where, what) in enumerate(draws):
            successors, cumulative = self._step(state, words - i)
            state = successors[_pick(cumulative, where)]
            choices, cumulative = self._emitters[self._emitter_of[state]].listed(
                topic if self._states[state].node in _TOPICAL_NODES else None
            )
            tokens.append(choices[_pick(cumulative, what)])
        return tokens

    def _step(self, state: int, remaining: int) -> tuple[list[int], list[float]]:
        """Return the successors of `state` and their cumulative probabilities, given that `remaining` words follow."""
        if (state, remaining) not in self._steps:
            successors = self._successors[state]
            weights = self._weights[state] * self._free[remaining - 1, successors]
            self._steps[state, remaining] = (successors.tolist(), (np.cumsum(weights) / weights.sum()).tolist())
        return self._steps[state, remaining]

    def write_many(
        self,
        draws: NDArray[np.float64],
        contrast: NDArray[np.float64],
        tones: NDArray[np.int64],
        words: NDArray[np.int64],
        topics: Sequence[str],
    ) -> NDArray[np.int64]:
        """Write many sentences at once, each a function of its own draws.

        Args:
            draws: (N, words, 2) uniform numbers; the words beyond a sentence's length are not read.
            contrast: (N,) uniform numbers that decide whether there is a contrast.
            tones: (N,) indices into `TONES`.
            words: (N,) how many words, 5 to 40.
            topics: N keys of `lexicon.TOPICS`.

        Returns:
            (N, words) positions in `lexicon.all_words`; -1 beyond a sentence's length.
        """
        edges, offsets, numbers, list_of = self._word_lists()
        lists = np.array([[list_of[f"{name}/{topic}"] for name in self._emitter_names] for topic in lexicon.TOPICS])
        topic = np.array([list(lexicon.TOPICS).index(name) for name in topics])
        contrasting = (contrast < self._contrast_rate) & (tones != 0) & (words >= _SHORTEST_CONTRAST)
        state = np.array(
            [
                self._starts[t, _BEFORE if c else _PLAIN]
                for t, c in zip(tones.tolist(), contrasting.tolist(), strict=True)
            ]
        )
        written = np.full(draws.shape[:2], -1)
        for i in range(int(words.max())):
            here = np.flatnonzero(words > i)
            now = state[here]
            weights = self._weights[now] * self._free[(words[here] - i - 1)[:, None], self._successors[now]]
            cumulative = np.cumsum(weights, axis=1)
            # A branch that cannot be taken has no width, so the first edge above the draw is one that can.
            reached = draws[here, i, :1] * cumulative[:, -1:]
            now = self._successors[now, np.minimum((cumulative <= reached).sum(axis=1), weights.shape[1] - 1)]
            state[here] = now
            chosen = lists[topic[here], self._emitter_number[now]]
            # List k lies between k and k + 1 on one line of edges, so one search serves all lists.
            place = np.searchsorted(edges, chosen + draws[here, i, 1], side="right")
            written[here, i] = numbers[np.minimum(place, offsets[chosen + 1] - 1)]
        return written

    def _word_lists(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], dict[str, int]]:
        """Lay all lists of words on one line: edges, first position of each list, numbers of words, and lists by name."""
        if self._lists is None:
            number = {word: i for i, word in enumerate(lexicon.all_words())}
            edges: list[float] = []
            numbers: list[int] = []
            offsets, list_of = [0], {}
            for name in self._emitter_names:
                for topic in lexicon.TOPICS:
                    if name not in self._emitters:  # "start" says nothing
                        list_of[f"{name}/{topic}"] = 0
                        continue
                    if name not in _TOPICAL_NODES and topic != next(iter(lexicon.TOPICS)):
                        list_of[f"{name}/{topic}"] = len(offsets) - 2
                        continue
                    choices, cumulative = self._emitters[name].listed(topic if name in _TOPICAL_NODES else None)
                    list_of[f"{name}/{topic}"] = len(offsets) - 1
                    edges += [len(offsets) - 1 + edge for edge in cumulative]
                    numbers += [number[word] for word in choices]
                    offsets.append(len(numbers))
            self._lists = np.array(edges), np.array(offsets), np.array(numbers), list_of
        return self._lists

    # --- completing ---

    def complete(
        self,
        sentences: Sequence[Sequence[str]],
        kept: Sequence[NDArray[np.bool_]],
        tone_prior: NDArray[np.float64],
        samples: int,
        generator: np.random.Generator,
        hints: Sequence[NDArray[np.float64]] | None = None,
    ) -> Completions:
        """Sample what partly hidden sentences may have been, given the words that survive and the number of words.

        Exact: weights of all futures are summed from the last word to the first (as in a hidden Markov model), then
        each sample walks forward in proportion to them.

        Args:
            sentences: B lists of words.
            kept: B bool arrays, True where the word survives.
            tone_prior: (7,) probability of each of `TONES` before a word is seen.
            samples: M, how many to draw per sentence.
            generator: Where the draws come from.
            hints: B arrays (n, W): how likely something seen beside the text is if the word at a position is that of
                `lexicon.all_words`, up to a factor per position; read where the word is hidden.
        """
        words: list[NDArray[np.int64]] = [np.zeros((samples, 0), dtype=np.int64) for _ in sentences]
        scores = np.zeros((len(sentences), samples))
        silent = np.zeros((len(sentences), samples), dtype=bool)
        by_length: dict[int, list[int]] = {}
        for i, sentence in enumerate(sentences):
            by_length.setdefault(len(sentence), []).append(i)
        for length, members in sorted(by_length.items()):
            for first in range(0, len(members), _ROWS_AT_ONCE):
                rows = members[first : first + _ROWS_AT_ONCE]
                seen = [[w if k else None for w, k in zip(sentences[i], kept[i], strict=True)] for i in rows]
                beside = None if hints is None else [hints[i] for i in rows]
                scores[rows], silent[rows], said = self._complete_equally_long(
                    seen, length, tone_prior, samples, generator, beside
                )
                for i, row in enumerate(rows if hints is not None else []):
                    words[row] = said[i]
        return Completions(scores, silent, words)

    def _complete_equally_long(
        self,
        seen: list[list[str | None]],
        length: int,
        tone_prior: NDArray[np.float64],
        samples: int,
        generator: np.random.Generator,
        hints: list[NDArray[np.float64]] | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
        rows = len(seen)
        futures = np.empty((length + 1, rows, len(self._states)))
        futures[length] = self._ends
        for i in range(length - 1, -1, -1):
            if hints is None:
                emitted = np.stack([self._likelihood(sentence[i]) for sentence in seen])
            else:
                emitted = np.stack(
                    [
                        self._likelihood(sentence[i]) if sentence[i] is not None else self._hinted(hint[i])
                        for sentence, hint in zip(seen, hints, strict=True)
                    ]
                )
            # futures[i + 1] now includes the word at i itself, as both this sum and the walk below need it.
            futures[i + 1] *= emitted
            futures[i] = self._step_back(futures[i + 1])
            peak = futures[i].max(axis=1, keepdims=True)
            futures[i] /= np.where(peak > 0, peak, 1.0)

        prior = self._start_prior(tone_prior, length)
        starts = np.array([state for state, _ in prior])
        weight = np.array([p / self._free[length, s] for s, p in prior]) * futures[0][:, starts]
        state = starts[_pick_each(np.repeat(weight[:, None, :], samples, axis=1), generator)]
        tone = np.array([s.tone for s in self._states])
        silent = tone[state] == 0
        said = np.zeros((rows, samples))
        factor = np.ones((rows, samples))
        row = np.arange(rows)[:, None]
        words = np.zeros((rows, samples, length if hints is not None else 0), dtype=np.int64)
        for i in range(length):
            successors = self._successors[state]
            chances = self._weights[state] * futures[i + 1][row[..., None], successors]
            choice = _pick_each(chances, generator)
            state = np.take_along_axis(successors, choice[..., None], axis=-1)[..., 0]
            here = [sentence[i] for sentence in seen]
            if hints is None:
                value, multiplies, contrasts = self._effects(here, state, generator)
            else:
                words[..., i] = self._say(here, state, generator, [hint[i] for hint in hints])
                value, multiplies = _VALENCES[words[..., i]], _FACTORS[words[..., i]]
                contrasts = self._emitter_of[state] == "contrast"
            said += value * factor
            factor = np.where(np.isnan(multiplies), 1.0, factor * np.nan_to_num(multiplies))
            said = np.where(contrasts, said * lexicon.CONTRAST_WEIGHT, said)
        return np.clip(said, LOWEST, HIGHEST), silent, words

    @functools.cached_property
    def _chances(self) -> NDArray[np.float64]:
        """The chance (E, W) of each word at the places that `_emitter_names` names."""
        return np.array(
            [
                [self._emitters[name].chance(word) if name in self._emitters else 0.0 for word in lexicon.all_words()]
                for name in self._emitter_names
            ]
        )

    def _hinted(self, hint: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (S,): how likely what was seen beside a hidden word is at each state."""
        likely: NDArray[np.float64] = (self._chances @ hint)[self._emitter_number]
        return likely

    def _say(
        self,
        seen: list[str | None],
        state: NDArray[np.int64],
        generator: np.random.Generator,
        hints: list[NDArray[np.float64]],
    ) -> NDArray[np.int64]:
        """Draw the word that is said at each state (B, M)."""
        said = np.zeros(state.shape, dtype=np.int64)
        draws = generator.random(state.shape)
        for i, (word, hint) in enumerate(zip(seen, hints, strict=True)):
            if word is not None:
                said[i] = _NUMBER_OF.get(word, _NUMBER_OF["the"])
                continue
            place = self._emitter_number[state[i]]
            for emitter in np.unique(place):
                here = place == emitter
                edges = np.cumsum(self._chances[emitter] * hint)
                said[i, here] = np.searchsorted(edges, draws[i, here] * edges[-1], side="right")
        return np.minimum(said, len(_NUMBER_OF) - 1)

    def _start_prior(self, tone_prior: NDArray[np.float64], length: int) -> list[tuple[int, float]]:
        contrast = self._contrast_rate if length >= _SHORTEST_CONTRAST else 0.0
        prior = []
        for (tone, phase), state in self._starts.items():
            share = 1.0 if tone == 0 else contrast if phase == _BEFORE else 1 - contrast
            if tone_prior[tone] * share > 0:
                prior.append((state, tone_prior[tone] * share))
        return prior

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - one grammar per process, see `grammar_for`
    def _likelihood(self, word: str | None) -> NDArray[np.float64]:
        """Return (S,): the chance that each state says `word`; ones where the word is hidden."""
        if word is None:
            return np.ones(len(self._states))
        chance = {name: emitter.chance(word) for name, emitter in self._emitters.items()}
        return np.array([chance.get(name, 0.0) for name in self._emitter_of])

    def _effects(
        self, seen: list[str | None], state: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return what the word at each state does: added valence, factor for the next word (NaN: none), contrast."""
        names = self._emitter_of[state]
        effect = np.zeros(state.shape)
        draws = generator.random(state.shape)
        for name, emitter in self._emitters.items():
            if emitter.effects is not None:
                here = names == name
                if here.any():
                    effect[here] = emitter.effects[np.searchsorted(emitter.cumulative[:-1], draws[here], side="right")]
        for i, word in enumerate(seen):
            if word is not None:
                effect[i] = lexicon.CUES.get(word, _FACTOR_OF.get(word, 0.0))
        is_cue = np.char.startswith(names, "cue")
        modifies = (np.char.startswith(names, "modifier")) | (names == "negator")
        return np.where(is_cue, effect, 0.0), np.where(modifies, effect, np.nan), names == "contrast"


class _Emitter:
    """The words that one place can take, with their chances and, for a place that matters, what each does."""

    def __init__(self, words: Sequence[str], chances: Sequence[float] | None = None, topical: bool = False) -> None:
        self.words = list(words)
        weights = np.ones(len(self.words)) if chances is None else np.array(chances, dtype=float)
        self.chances = weights / weights.sum()
        self.cumulative = np.cumsum(self.chances)
        known = [lexicon.CUES.get(word, _FACTOR_OF.get(word)) for word in self.words]
        self.effects = None if None in known else np.array(known, dtype=float)
        self._position = {word: i for i, word in enumerate(self.words)}
        self._lists: dict[str | None, tuple[list[str], list[float]]] = {None: (self.words, self.cumulative.tolist())}
        self._topical_share = 0.7 if topical else 0.0
        if topical:
            for topic, nouns in lexicon.TOPICS.items():
                chances_here = [0.3 / len(self.words)] * len(self.words) + [0.7 / len(nouns)] * len(nouns)
                self._lists[topic] = ([*self.words, *nouns], np.cumsum(chances_here).tolist())

    def listed(self, topic: str | None) -> tuple[list[str], list[float]]:
        """Return the words and their cumulative chances in a video on `topic`."""
        return self._lists[topic]

    def chance(self, word: str) -> float:
        """Return the chance of `word` over all topics."""
        if word in self._position:
            return float(self.chances[self._position[word]]) * (1 - self._topical_share)
        if self._topical_share and word in _TOPIC_WORDS:
            return self._topical_share / len(_TOPIC_WORDS)
        return 0.0


_NUMBER_OF = {word: i for i, word in enumerate(lexicon.all_words())}
_VALENCES = np.array([lexicon.CUES.get(word, 0.0) for word in lexicon.all_words()])
#: What a word multiplies the next one by, NaN where it does not.
_FACTORS = np.array([_FACTOR_OF.get(word, np.nan) for word in lexicon.all_words()])
_TOPIC_WORDS = frozenset(word for words in lexicon.TOPICS.values() for word in words)
_ROWS_AT_ONCE = 128
#: "it was good but it was bad" has seven words.
_SHORTEST_CONTRAST = 7


def _emitters() -> dict[str, _Emitter]:
    """Build what each place can say; cue places differ by sign and strength, modifiers by strength."""
    emitters = {node: _Emitter(words, topical=node in _TOPICAL_NODES) for node, words in _FILLERS_AT.items()}
    emitters["negator"] = _Emitter(list(lexicon.NEGATORS), [0.7, 0.14, 0.08, 0.08])
    for strength, typical in enumerate(_TYPICAL_VALENCE):
        share = _INTENSIFY[strength]
        strong, mild = len(lexicon.INTENSIFIERS), len(lexicon.DIMINISHERS)
        emitters[f"modifier {strength}"] = _Emitter(
            [*lexicon.INTENSIFIERS, *lexicon.DIMINISHERS],
            [share / strong] * strong + [(1 - share) / mild] * mild,
        )
        for sign in (1, -1):
            chances = []
            for coherent, part in ((True, _COHERENCE), (False, 1 - _COHERENCE)):
                closeness = {
                    word: np.exp(-(((abs(v) - typical) / _VALENCE_SPREAD) ** 2) / 2)
                    * (_COMMON_FACTOR if word in lexicon.COMMON_CUES else 1.0)
                    for word, v in lexicon.CUES.items()
                    if (v * sign > 0) == coherent
                }
                total = sum(closeness.values())
                chances += [(word, part * c / total) for word, c in closeness.items()]
            emitters[f"cue {sign:+d} {strength}"] = _Emitter([w for w, _ in chances], [c for _, c in chances])
    return emitters


def _pick(cumulative: list[float], draw: float) -> int:
    """Return the index whose share of [0, 1) holds `draw`."""
    for i, edge in enumerate(cumulative):
        if draw < edge:
            return i
    return len(cumulative) - 1


def _pick_each(chances: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw one index per last axis of `chances` (unnormalised)."""
    cumulative = np.cumsum(chances, axis=-1)
    draws = generator.random((*chances.shape[:-1], 1)) * cumulative[..., -1:]
    picked: NDArray[np.int64] = np.minimum((cumulative <= draws).sum(axis=-1), chances.shape[-1] - 1)
    return picked


@functools.cache
def grammar_for(contrast_rate: float) -> SentenceGrammar:
    """Return the grammar for a contrast rate; it is built once per process."""
    return SentenceGrammar(contrast_rate)
