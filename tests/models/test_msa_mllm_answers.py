"""Reading answers of language models: the score, the tokens that carry it, and when nothing is to be read."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_msa.label_families import find_label_family
from hf_msa.models.msa_mllm_answers import MllmAnswer, label_entropy, label_entropy_bounds, parse_score
from hf_msa.models.uacs_prompts import direct_prompt
from nonempty import some

MOSI = (-3.0, 3.0)
SIMS = (-1.0, 1.0)
PROMPT = direct_prompt(find_label_family("mosi"), "I loved it", ("text",))


def answer(
    *pieces: tuple[str, float], bounds: tuple[tuple[float, float], ...] | None = None, finished: bool = True
) -> MllmAnswer:
    texts, entropies = zip(*pieces, strict=True)
    return MllmAnswer("".join(texts), texts, entropies, tuple(0.0 for _ in texts), bounds, finished)


def characters(text: str) -> MllmAnswer:
    """One token per character; the entropy of each is its position."""
    positions = tuple(map(float, range(len(text))))
    return MllmAnswer(text, tuple(text), positions, (0.0,) * len(text))


GOLDEN = [
    ("-0.4", -0.4),
    ("- 0.4", -0.4),
    ("\u20100.4", -0.4),
    ("\u20110.4", -0.4),
    ("\u20140.4", -0.4),
    ("\u22120.4", -0.4),
    ("\uff0d0.4", -0.4),
    ("\uff0d\uff10\uff0e\uff14", -0.4),
    ("\u2212 0.4", -0.4),
    ("minus 0.4", -0.4),
    ("Minus 0.4.", -0.4),
    ("negative 0.6", -0.6),
    ("负0.6", -0.6),
    ("負 0.6", -0.6),
    ("情感得分为负0.6。", -0.6),
    ("-0,6", -0.6),
    ("0,6", 0.6),
    ("The score is -0,6.", -0.6),
    ("On a scale from -3 to 3, I would say 1.5", 1.5),
    ("3D movie: 1.0", 1.0),
    ("1.5/3", 1.5),
    ("-1.5/3", -1.5),
    ("1.5 out of 3", 1.5),
    ("3.4", 3.0),
    ("-3.5", -3.0),
    ("**-1.2**", -1.2),
    ("__1.2__", 1.2),
    ("`-1.2`", -1.2),
    ('{"score": -1.2}', -1.2),
    ('{"sentiment": "positive", "score": 0.8, "confidence": 0.95}', 0.8),
    ("Sentiment: positive (0.8)", 0.8),
    ("Sentiment: negative (-0.8)", -0.8),
    ("The answer is 1. Because 2 people laugh", 1.0),
    ("The answer is 1. Because 2 ...", 1.0),
    ("The score is - 0.4", -0.4),
    ("Score: - 0.4", -0.4),
    ("score=-3", -3.0),
    ("+2", 2.0),
    ("+ 2", 2.0),
    ("-.5", -0.5),
    (".5", 0.5),
    ("情感得分-0.4。", -0.4),
    ("情感得分：-0.4分", -0.4),
    ("得分：1.5分", 1.5),
    ("<score>1.2</score>", 1.2),
    ("\\boxed{-1.2}", -1.2),
    ("$-1.2$", -1.2),
    ("1. The speaker is happy.\n2. He laughs.\nScore: 0.8", 0.8),
    ("1.5 because 2 people laughed", 1.5),
    ("COVID-19 is bad: -1.5", -1.5),
    ("In 2015 he said so; score 1.2", 1.2),
    ("1.2\n1.2\n1.2", 1.2),
    ("-0.0", 0.0),
    ("0", 0.0),
    ("The sentiment is slightly negative, about -0.4.", -0.4),
    ("-3 (very negative) to 3 (very positive): 1.2", 1.2),
    ("From -3 = negative to 3 = positive, I'd say -0.6", -0.6),
    ("Score (-3 to 3): 2", 2.0),
    ("Score: 1.2 (confidence 0.9)", 1.2),
    ("negative -0.8", -0.8),
    ("positive 0.8", 0.8),
    ("Score: 2 points", 2.0),
    ("The score is 2 indicating joy", 2.0),
    ("Sure! Here is the score: -0.4", -0.4),
    ("Answer: \n\n-0.4", -0.4),
    ("\n-0.4\n", -0.4),
    ("-0.4</s>", -0.4),
    ("得分minus 0.4", -0.4),
    ("moins 0,4", -0.4),
    ("マイナス0.4", -0.4),
    ("**Score:** **-0.4**", -0.4),
    ("Score: -0.4 (negative)", -0.4),
    ("I'd rate it a 2 because 3 jokes land", 2.0),
    ("### -1.2", -1.2),
    ("-> 1.5", 1.5),
    ("*0.4*", 0.4),
    ("\u2022 0.4", 0.4),
    ("-1", -1.0),
    ("'-1.0'", -1.0),
    ("(-1.0)", -1.0),
    ("The score is 1.2.", 1.2),
    ("1.2.", 1.2),
    ("约-0.4", -0.4),
    ("~0.4", 0.4),
    ("\u2248 -0.4", -0.4),
    ("-3", -3.0),
    ("3", 3.0),
    ("Score: -3, the lowest on the scale from -3 to 3", -3.0),
    ("\u200b-0.4", -0.4),
    ("- 0.4 -", -0.4),
    ("<think>It is 2 or 3, negative</think>\n1.5", 1.5),
    ("My first answer was -0.4. Now 0.3.", 0.3),
    ("(-3 to 3) 1.5", 1.5),
    ("Score: 2 points.", 2.0),
    (f"{PROMPT} Score: 1.2", 1.2),
    ("Clip 2: 1.5", 1.5),
    ("Sentiment of speaker 1: 0.5", 0.5),
    ("0.75 (75%)", 0.75),
    ("-1.0\n\nExplanation: The speaker says 3 bad words.", -1.0),
    ("我认为得分是-0.5。因为说话人说了2次不好。", -0.5),
    ("The speaker seems positive. I'd give 1.8.", 1.8),
    ("Score = 2.0/3.0", 2.0),
    ("It's a 2", 2.0),
    ("between -1 and 0, say -0.5", -0.5),
    ("sentiment=-0.5, confidence=0.9", -0.5),
    ("0.5（积极）", 0.5),
    ("neg 0.5", -0.5),
    ("-1 on a scale of -3 to 3", -1.0),
    ("Score: \u22120.5 \u00b1 0.1", -0.5),
    ("-1.2<|im_end|>", -1.2),
]
"""Answers and the scores that they give on a scale from -3 to 3."""

UNREADABLE = [
    "8/10",
    "10",
    "-7",
    "between 1 and 2",
    "80%",
    "80 percent positive",
    "one point five",
    "minus one",
    "Sentiment: negative (0.8)",
    "Negative: 0.6",
    "0.8-1.0",
    "0.8 to 1.0",
    "1 or 2",
    "",
    "I'm sorry, but I cannot rate this clip.",
    "I cannot judge 2 speakers.",
    "I cannot watch a 30-second clip.",
    "Score - 0.4",
    "Score \u2013 0.4",
    "Score-0.4",
    "abc",
    "- no number -",
    "Between 1-2, I think",
    "1. The speaker is happy.",
    "2 people are laughing",
    "COVID-19",
    "1.2 3",
    "1.2, 0.5",
    "The sentiment is slightly negative, about 0.4.",
    "[-3, 3]",
    "-3,3",
    "Confidence: 0.9",
    "I am 0.9 confident",
    ">1.5",
    "at least 1",
    "not -1.5",
    "- 0.4\n- 0.6",
    "--0.4",
    "\u00b10.4",
    "+/-0.4",
    "one point 5",
    "1点5",
    "负一点五",
    "minus -0.4",
    "positive -0.8",
    "1,000",
    "10:30",
    "1.2.3",
    "2 stars",
    "I would give 2 stars",
    "minus: 0.4",
    "-**0.4**",
    "0.4 (negative)",
    "> 1.5",
    "1e-3",
    "3rd",
    "First estimate 0.3, second 0.9, so 0.6",
    "Score: 0.3. Final score: 0.6",
    "-3 to 3",
    "1 - 2 = -1",
    "Score: 1.5 hours",
    "x2",
    "feature_4",
    "$2",
    "<think>It is 2",
    "Score: 1 point 5",
    PROMPT,
    "9" * 400,
    "Clip 2",
    "Speaker 1 is happy",
    "There are 2.",
    "0.1 positive, 0.8 negative",
    "1.2 (score), -0.4 (other)",
    "below zero: 0.4",
    "0.4 points below neutral",
    "0.5（消极）",
    "情感极性：消极，得分：0.5",
    "1½",
    "Rating: 2 out of 5 stars",
    "positive: 0.8, negative: 0.1, neutral: 0.1",
    "Option 2",
]
"""Answers that give no score, more than one, or one whose sign is in doubt."""


SURROUNDINGS = [
    "{}",
    " {}\n",
    "{}.",
    "**{}**",
    "`{}`",
    "({})",
    '"{}"',
    '{{"score": {}}}',
    '{{"score": {}, "confidence": 0.9}}',
    "<score>{}</score>",
    "$\\boxed{{{}}}$",
    "Score: {}",
    "Score:{}",
    "**Score:** {}",
    "The sentiment score is {}.",
    "The score is {}, because 2 people laugh.",
    "On a scale from -3 to 3, I would say {}",
    "From -3 (very negative) to 3 (very positive): {}",
    "[-3, 3] -> {}",
    "3D movie: {}",
    "{}/3",
    "{} out of 3",
    "I am 80% sure that it is {}",
    "Answer:\n\n{}\n\nThere are 3 reasons.",
    "1. The speaker laughs.\n2. The words are kind.\nScore: {}",
    "情感得分为{}。",
    "得分：{}分",
    "<think>2? No, -1, that is negative.</think>{}",
    PROMPT + "\n{}",
]
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"
TENTHS = st.integers(-30, 30)


class TestGolden:
    def test_the_table_is_large(self) -> None:
        assert len(GOLDEN) >= 60
        assert len(UNREADABLE) >= 40

    @pytest.mark.parametrize(("text", "score"), GOLDEN)
    def test_the_score_is_read(self, text: str, score: float) -> None:
        assert parse_score(text, MOSI) == score

    @pytest.mark.parametrize("text", UNREADABLE)
    def test_nothing_is_read_in_doubt(self, text: str) -> None:
        assert parse_score(text, MOSI) is None
        assert label_entropy(characters(text), MOSI) == math.inf

    @pytest.mark.parametrize(
        ("text", "label_range", "score"),
        [
            ("1.5", SIMS, 1.0),
            ("-1.3", SIMS, -1.0),
            ("2", SIMS, None),
            ("0.5/1", SIMS, 0.5),
            ("1.5/3", SIMS, None),
            ("[-1, 1]: 0.4", SIMS, 0.4),
            ("-1,1", SIMS, None),
            ("5", (1.0, 5.0), 5.0),
            ("0", (1.0, 5.0), 1.0),
            ("4/5", (1.0, 5.0), 4.0),
            ("negative: 1", (1.0, 5.0), 1.0),
            ("-0.4", (1.0, 5.0), None),
            ("72.5", (0.0, 100.0), 72.5),
            ("-7", None, -7.0),
            ("4/5", None, None),
        ],
    )
    def test_the_range_decides(self, text: str, label_range: tuple[float, float] | None, score: float | None) -> None:
        assert parse_score(text, label_range) == score

    def test_minus_zero_is_zero(self) -> None:
        assert math.copysign(1, parse_score("-0.0") or 0.0) == 1


class TestProperties:
    @settings(max_examples=400)
    @given(TENTHS, st.sampled_from(SURROUNDINGS), st.sampled_from(DASHES))
    def test_a_label_is_read_back_from_all_that_may_be_around_it(self, tenths: int, around: str, dash: str) -> None:
        written = f"{tenths / 10:.1f}".replace("-", dash)
        assert parse_score(around.format(written), MOSI) == tenths / 10

    @settings(max_examples=200)
    @given(
        st.integers(-30, -1),
        st.sampled_from(
            ["minus {}", "negative {}", "负{}", "- {}", "The score is - {}", "Score: minus {}.", "得分负{}"]
        ),
        st.sampled_from([".", ","]),
    )
    def test_signs_apart_from_the_number_count(self, tenths: int, around: str, point: str) -> None:
        written = f"{-tenths / 10:.1f}".replace(".", point)
        assert parse_score(around.format(written), MOSI) == tenths / 10

    @settings(max_examples=500)
    @given(
        st.sampled_from(
            [
                "",
                "Score ",
                "Score: ",
                "Sentiment",
                "So I say ",
                "得分",
                "\n",
                "- ",
                "negative",
                "(",
                "It is",
                "2",
                "1.5 ",
                "= ",
            ]
        ),
        st.sampled_from(
            [*DASHES, "minus", "negative", "负", "Minus:", "-**", "- (", "\u2014 ", " - ", " \u2013 ", "-\n", "- - "]
        ),
        st.sampled_from(["", " ", "  "]),
        st.integers(1, 30),
        st.sampled_from(["", ".", ")", "**", " (negative)", ", I say", "/3", " points", " below zero"]),
    )
    def test_the_other_sign_is_never_read(self, before: str, sign: str, gap: str, tenths: int, after: str) -> None:
        score = parse_score(f"{before}{sign}{gap}{tenths / 10:.1f}{after}", MOSI)
        # None, what was meant, or the number before it; never the opposite.
        assert score in (None, -tenths / 10) or (before in ("2", "1.5 ") and score == float(before))

    @settings(max_examples=300)
    @given(
        st.lists(
            st.sampled_from(
                ["-", "- ", "0.4", "3", "1,5", " ", "\n", "score ", "minus ", "(", ")", "/", " to ", "负", "*", "$"]
            )
            | st.text(max_size=3),
            max_size=12,
        ).map("".join)
    )
    def test_any_text_is_read_within_the_range_or_not_at_all(self, text: str) -> None:
        score = parse_score(text, MOSI)
        assert score is None or -3 <= score <= 3
        assert (label_entropy(characters(text), MOSI) == math.inf) is (score is None)

    @pytest.mark.parametrize(
        "text",
        [" " * 50_000 + "1", "-" * 50_000 + "1", "1.5" + "*" * 50_000 + "2", "minus " * 9000 + "1", "a_" * 50_000],
    )
    def test_long_nonsense_takes_no_time(self, text: str) -> None:
        begin = time.perf_counter()
        parse_score(text, MOSI)
        assert time.perf_counter() - begin < 2


class TestCutAnswers:
    def test_a_number_at_the_cut_may_lack_digits(self) -> None:
        pieces = (("Score: ", 9.0), ("1", 0.2))
        assert parse_score(answer(*pieces)) == 1
        cut = answer(*pieces, finished=False)
        assert parse_score(cut) is None
        assert label_entropy(cut) == math.inf
        assert parse_score(answer(*pieces, (".", 0.1), finished=False)) is None

    def test_one_before_it_lacks_none(self) -> None:
        assert parse_score(answer(("1.5", 0.1), (" because", 0.1), finished=False)) == 1.5


class TestLabelEntropy:
    def test_sign_digits_and_point_count_and_nothing_else(self) -> None:
        given = answer(("Score:", 9.0), (" ", 9.0), ("-0", 0.2), (".", 0.1), ("4", 0.9), (" ok", 9.0), ("", 9.0))
        assert label_entropy(given) == pytest.approx(0.4)

    def test_a_token_that_brings_a_space_along_counts(self) -> None:
        assert label_entropy(answer((" 1", 0.3), (".2", 0.5), (" for", 9.0), (" 3", 9.0))) == pytest.approx(0.4)

    def test_a_sign_in_words_counts_and_the_space_behind_it_does_not(self) -> None:
        assert label_entropy(answer(("It is", 9.0), (" minus", 0.6), (" ", 9.0), ("0.4", 0.2))) == pytest.approx(0.4)
        assert label_entropy(answer(("-", 0.6), (" ", 9.0), ("0.4", 0.2))) == pytest.approx(0.4)
        assert label_entropy(answer(("得分", 9.0), ("负", 0.6), ("0.4", 0.2), ("。", 9.0))) == pytest.approx(0.4)

    def test_it_is_that_of_the_number_which_is_read(self) -> None:
        for text, begin, end in some(
            [
                ("On a scale from -3 to 3, I would say 1.5", 37, 40),
                ("3D movie: 1.0", 10, 13),
                ("-0,6", 0, 4),
                ("1.5/3", 0, 3),
                ("<think>2</think>-1", 16, 18),
            ]
        ):
            assert label_entropy(characters(text), MOSI) == sum(range(begin, end)) / (end - begin)

    def test_an_answer_without_a_number_is_as_uncertain_as_can_be(self) -> None:
        assert label_entropy(answer(("abc", 0.1))) == math.inf
        assert label_entropy_bounds(answer(("abc", 0.1))) == (math.inf, math.inf)
        assert label_entropy_bounds(answer(("10", 0.1), bounds=((0.0, 0.2),)), MOSI) == (math.inf, math.inf)

    def test_bounds_are_averaged_over_the_same_tokens(self) -> None:
        given = answer(("is ", 1.0), ("1", 0.2), (".5", 0.4), bounds=((0, 9), (0.1, 0.3), (0.2, 0.6)))
        assert label_entropy_bounds(given) == pytest.approx((0.15, 0.45))
        assert label_entropy_bounds(answer(("1", 0.2))) == (0.2, 0.2)


@pytest.mark.parametrize(
    ("entropies", "logprobs", "bounds"),
    [
        ((-742.0,), (-0.1,), None),
        ((math.nan,), (-0.1,), None),
        ((math.inf,), (-0.1,), None),
        ((0.1,), (742.0,), None),
        ((0.1,), (math.nan,), None),
        ((0.1, 0.1), (-0.1,), None),
        ((0.1,), (-0.1,), ((-1.0, 0.2),)),
        ((0.1,), (-0.1,), ()),
    ],
)
def test_an_answer_with_numbers_that_cannot_be_is_refused(
    entropies: tuple[float, ...], logprobs: tuple[float, ...], bounds: tuple[tuple[float, float], ...] | None
) -> None:
    with pytest.raises(ValueError, match="must be one of each|entropies are numbers from 0 on"):
        MllmAnswer("1", ("1",), entropies, logprobs, bounds)
