"""Answers that are held to a form: what may follow at each place, for two kinds of tokenizers."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hf_msa.models.msa_mllm import MllmRequest
from hf_msa.models.msa_mllm_forms import AnswerForm, FormConstraint, Phrase, Vocabulary
from hf_msa.models.omg_observation import Observation
from hf_msa.models.omg_plan import PLAN_FORM, read_plan
from hf_msa.models.omg_planner import MllmPlanner
from nonempty import some
from scripted_mllm import ScriptedMllm, says
from tiny import tiny_omg_config
from tiny_llama import TOKENIZERS, tiny_llama

FORM = AnswerForm(("A:", Phrase(6), "; B:", (" yes", " yesterday", " no")))


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def constraint_of(tokenizer: PreTrainedTokenizerFast, form: AnswerForm = FORM, longest: int = 48) -> FormConstraint:
    return FormConstraint(form, Vocabulary(tokenizer, [tokenizer.eos_token_id]), 2, longest)


def behind(constraint: FormConstraint, tokenizer: PreTrainedTokenizerFast, text: str) -> set[str]:
    """Texts of the tokens that may follow an answer's, two tokens of a prompt before it."""
    answer = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    scores = constraint(torch.tensor([[0, 0, *answer]]), torch.zeros(1, len(tokenizer) + 3))
    ids = scores[0].isfinite().nonzero()[:, 0].tolist()
    pieces = Vocabulary(tokenizer, [tokenizer.eos_token_id]).pieces
    return {pieces.get(token, "END") for token in ids}


class TestForm:
    def test_its_regex_and_its_grammar_say_the_same(self) -> None:
        assert FORM.regex == r'A: ?[^;:"\n ][^;:"\n]{0,5}; B:( yes| yesterday| no)'
        assert FORM.grammar == (r'root ::= "A:" " " [^;:\"\n ] [^;:\"\n]{0,5} "; B:" (" yes" | " yesterday" | " no")')
        assert AnswerForm((("-0.1", "0.0"),)).regex == r"(-0\.1|0\.0)"
        assert AnswerForm((("-0.1", "0.0"),)).grammar == 'root ::= "-0.1" | "0.0"'

    @pytest.mark.parametrize("text", ["A: me; B: no", " A:me; B: yesterday\n", "A: a b c; B: yes"])
    def test_answers_that_keep_to_it(self, text: str) -> None:
        assert FORM.matches(text)

    @pytest.mark.parametrize(
        "text", ["", "A: me", "A: ; B: no", "A: far too long; B: no", "A: me; B: maybe", "A: a;b; B: no"]
    )
    def test_answers_that_do_not(self, text: str) -> None:
        assert not FORM.matches(text)

    def test_parts_that_cannot_be_told_apart_are_refused(self) -> None:
        for parts in ((Phrase(4),), (Phrase(4), "and"), (("a", "b"), "c"), ()):
            with pytest.raises(ValueError, match="Behind a phrase|A form has parts"):
                AnswerForm(parts)


class TestConstraint:
    def test_fixed_text_is_written_in_its_longest_tokens(self, tokenizer: PreTrainedTokenizerFast) -> None:
        constraint = constraint_of(tokenizer)
        assert behind(constraint, tokenizer, "") == {"A"}
        assert behind(constraint, tokenizer, "A") == {":"}

    def test_a_phrase_has_a_letter_first_and_no_marks(self, tokenizer: PreTrainedTokenizerFast) -> None:
        constraint = constraint_of(tokenizer)
        first, later = behind(constraint, tokenizer, "A:"), behind(constraint, tokenizer, "A: me")
        assert "S" in first and not {";", ":", '"', "\n", " ", "?", "END"} & first
        assert {"S", ";", "?"} <= later and not {":", '"', "\n", "END"} & later

    def test_a_phrase_ends_where_it_has_to(self, tokenizer: PreTrainedTokenizerFast) -> None:
        assert behind(constraint_of(tokenizer), tokenizer, "A: Score") == {";"}  # six characters
        needed = len("A:") + 1 + len("; B:") + len(" yesterday") + 1  # no token of either writes more than a character
        assert behind(constraint_of(tokenizer, longest=needed + 1), tokenizer, "A:me") == {";"}
        with pytest.raises(
            ValueError, match=rf"may have {needed - 1} tokens, but one of the wanted form may take {needed}"
        ):
            constraint_of(tokenizer, longest=needed - 1)

    def test_one_of_several_texts_is_written(self, tokenizer: PreTrainedTokenizerFast) -> None:
        constraint = constraint_of(tokenizer)
        assert behind(constraint, tokenizer, "A: me; B:") == {" "}
        assert behind(constraint, tokenizer, "A: me; B: ") == {"y", "n"}
        assert behind(constraint, tokenizer, "A: me; B: yes") == {"t", "END"}
        assert behind(constraint, tokenizer, "A: me; B: no") == {"END"}

    def test_a_vocabulary_that_cannot_write_it_is_refused(self) -> None:
        raw = Tokenizer(models.BPE({"a": 0, "A": 1, "<end>": 2}, []))
        raw.decoder = decoders.Fuse()
        narrow = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")
        with pytest.raises(ValueError, match="has no token for ':'.*leave the constraint out"):
            constraint_of(narrow)


class TestPlans:
    def test_random_weights_write_plans_that_keep_to_the_schema(self, tokenizer: PreTrainedTokenizerFast) -> None:
        mllm = tiny_llama(tokenizer, 0)
        requests = [MllmRequest("Score?"), MllmRequest("And that?")]
        longest = {"max_new_tokens": 150, "temperature": 20.0, "num_candidates": 4}
        answers = [answer for row in mllm.generate(requests, **longest, form=PLAN_FORM) for answer in row]
        for answer in some(answers):
            assert answer.finished and PLAN_FORM.matches(answer.text) and read_plan(answer.text)[0] is not None
            # Of the full vocabulary: random weights would rather have written anything else.
            assert answer.logprob < -len(answer.token_texts)
        assert len({answer.text for answer in answers}) == len(answers)

    def test_free_answers_do_not(self, tokenizer: PreTrainedTokenizerFast) -> None:
        ((answer,),) = tiny_llama(tokenizer, 0).generate([MllmRequest("Score?")], 60)
        assert read_plan(answer.text)[0] is None

    def test_a_planner_asks_for_the_form_where_it_is_told_to_and_keeps_such_plans_apart(self) -> None:
        mllm = ScriptedMllm(says(("Entity: a; Action: b; Sentiment: neutral", [-1.0])))
        seen = [Observation("words")]
        free, held = (
            MllmPlanner(mllm, tiny_omg_config(planner_constrained=constrained)) for constrained in (False, True)
        )
        held.store = free.store
        for planner in (free, held, held):
            planner.propose(seen)
        assert [options.get("form") for options in mllm.options] == [None, PLAN_FORM]
