import itertools
import random
import statistics
import time
import typing
from collections import Counter

import pytest

from jaxinterp.config import load_config
from jaxinterp.tasks import countdown, countdown_search, countdown_tokenizer, plain_verification
from jaxinterp.tasks.countdown import Problem
from jaxinterp.tasks.countdown_corpus import CorpusSettings, Search, document, documents
from jaxinterp.tasks.countdown_grammar import STYLES, write_response
from jaxinterp.tasks.countdown_problems import ProblemSettings
from jaxinterp.tasks.countdown_traces import Reading, read


def searches(settings: CorpusSettings, count: int, seed: int = 0) -> list[tuple[Problem, Reading]]:
    found = []
    for prompt, response in documents(count, seed, settings):
        if not response.startswith("\n"):
            continue
        problem = countdown.parse(prompt).problem
        found.append((problem, read(problem, response)))
    return found


def settings_for(style: str, search: Search) -> CorpusSettings:
    return CorpusSettings(styles=tuple(float(name == style) for name in STYLES), verification=0.0, search=search)


@pytest.mark.parametrize("search", ["confounded", "equal"])
@pytest.mark.parametrize("operands", [(3, 4), (2,), (2, 5)])
def test_nothing_in_a_corpus_is_wrong(search, operands):
    settings = CorpusSettings(problems=ProblemSettings(operands=operands, leading=0.3), search=search)
    found = searches(settings, 400)
    assert {style for _, reading in found if (style := reading.style)} == {*STYLES}
    for problem, reading in found:
        assert problem.split == "train"
        assert reading.is_grammatical
        assert not reading.is_truncated
        assert 1 <= len(reading.attempts) <= 11
        for attempt in reading.attempts:
            assert attempt.accepted == attempt.is_reached == attempt.is_solved
            assert attempt.is_sound
            assert attempt.uses_all
        assert reading.is_correct == reading.attempts[-1].accepted
        assert not any(attempt.accepted for attempt in reading.attempts[:-1])
        assert len({attempt.expression for attempt in reading.attempts}) == len(reading.attempts)


def test_questions_are_true_balanced_and_asked_as_the_experiments_ask_them():
    answers = Counter()
    for prompt, response in documents(600, 1, CorpusSettings(verification=1.0)):
        asked, tried, _ = prompt.split("\n")
        problem = countdown.parse(f"{asked}\n").problem
        expression, *steps = tried.removeprefix("Attempt: ").removesuffix(".").split(" = ")
        assert tuple(steps) == countdown.chain(expression)
        assert problem.split == "train"
        assert response == ("Yes" if int(steps[-1]) == problem.target else "No")
        attempt = countdown.Attempt(
            expression=expression, steps=tuple(steps), result=0, valid=True, result_span=(0, 0), open=0
        )
        assert prompt == plain_verification.question(problem, attempt)
        answers[response] += 1
    assert 0.42 < answers["Yes"] / 600 < 0.58


def test_a_document_is_a_function_of_its_number():
    whole = list(documents(12, seed=4))
    assert whole[5:9] == list(documents(4, seed=4, first=5))
    assert whole[3] == document(3, 4)
    assert whole != list(documents(12, seed=5))
    assert len({*whole}) == 12


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_documents_lie_in_the_split_asked_for(split):
    for prompt, _ in documents(60, 0, split=split):
        asked = prompt.partition("\n")[0]
        assert countdown.parse(f"{asked}\n").problem.split == split


def test_the_mixture_is_as_asked():
    found = searches(CorpusSettings(), 3000)
    shares = Counter(reading.style for _, reading in found)
    assert 0.90 < len(found) / 3000 < 0.94
    for style, weight in zip(STYLES, CorpusSettings().styles, strict=True):
        assert abs(shares[style] / len(found) - weight) < 0.035, style


def test_the_first_style_is_better_in_the_confounded_corpus_alone():
    solved = {
        search: {
            style: statistics.mean(reading.is_correct for _, reading in searches(settings_for(style, search), 700))
            for style in (STYLES[0], STYLES[1], STYLES[-1])
        }
        for search in typing.get_args(Search)
    }
    first, second, prose = solved["confounded"].values()
    assert first > second + 0.15
    assert second > prose
    assert max(solved["equal"].values()) == min(solved["equal"].values())


def test_both_corpora_solve_about_as_many_problems():
    shares = [
        statistics.mean(reading.is_correct for _, reading in searches(CorpusSettings(search=search), 2500))
        for search in typing.get_args(Search)
    ]
    assert all(0.70 < share < 0.80 for share in shares)
    assert abs(shares[0] - shares[1]) < 0.04


@pytest.mark.parametrize("search", ["confounded", "equal"])
def test_a_document_fits_the_context_of_the_shipped_models(search):
    tokenizer = countdown_tokenizer.tokenizer()
    lengths = [len(tokenizer.encode("".join(parts))) + 1 for parts in documents(2000, 2, CorpusSettings(search=search))]
    assert 430 < max(lengths) <= 500 if search == "confounded" else max(lengths) < 400


def test_the_closest_attempt_is_the_answer_of_a_failed_search():
    problem = Problem((57, 18, 65, 71), 45)
    tried = ["65 - 71 - 18 + 57", "71 - 57 - 65 + 18", "65 + 18 + 57 + 71", "65 - 71 + 18 - 57"]
    assert write_response(problem, tried, "found").endswith(
        "\nThe closest is 65 - 71 - 18 + 57.\n</think>\n<answer> 65 - 71 - 18 + 57 </answer>"
    )


def test_the_first_style_is_that_of_the_traces_written_elsewhere():
    problem, tried = Problem((31, 12, 71), 28), ["31 + 12 - 71", "71 - 31 - 12"]
    for expressions in (tried, tried[:1]):
        assert countdown.write(problem, expressions) == problem.prompt + write_response(
            problem, expressions, "this works"
        )


@pytest.mark.parametrize(
    ("expressions", "style", "sentence"),
    [([], "yes", "no attempts|not attempts"), (["7 / 2"], "yes", "worked off"), (["7 + 2"], "maybe", "no style")],
)
def test_responses_that_cannot_be_written_are_refused(expressions, style, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_response(Problem((7, 2), 9), expressions, style)


def test_candidates_are_all_there_are():
    numbers = (6, 3, 2)
    expected = {
        sum(sign * number for sign, number in zip(signs, numbers, strict=True))
        for signs in itertools.product((1, -1), repeat=3)
    } - {-11}
    assert {candidate.value for candidate in countdown_search.sums(numbers)} == expected
    written = [candidate.expression() for candidate in countdown_search.leads(numbers)]
    assert len({*written}) == len(written)
    assert {text.rpartition(" ")[0] for text in written} == {
        *("6 * 3 +", "6 * 3 -", "6 * 2 +", "6 * 2 -", "3 * 2 +", "3 * 2 -", "6 / 3 +", "6 / 3 -", "6 / 2 +", "6 / 2 -")
    }
    for candidate in [*countdown_search.sums(numbers), *countdown_search.leads(numbers)]:
        for draw in (None, random.Random(1)):
            assert int(countdown.chain(candidate.expression(draw))[-1]) == candidate.value


def test_closeness_guides_a_search_and_its_scale_says_how_much():
    problem, draw = Problem((40, 30, 20, 5), 55), random.Random(0)
    places = {}
    for scale in (5.0, 50.0, 5000.0):
        effort = countdown_search.Effort(scale=scale, cap=15, sums=(15, 15), leads=(0, 0), is_tidy=True)
        places[scale] = statistics.mean(len(countdown_search.search(problem, draw, effort)) for _ in range(200))
    assert places[5.0] < places[50.0] < places[5000.0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"styles": (1.0,)}, "7 weights"),
        ({"styles": (0.0,) * 7}, "7 weights"),
        ({"styles": (-1.0, *(1.0,) * 6)}, "not negative"),
        ({"verification": 1.2}, "share from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        CorpusSettings(**settings)


def test_settings_are_read_from_a_recipe():
    read_back = load_config(CorpusSettings, {"problems": {"operands": [2], "leading": 0.5}, "search": "equal"})
    assert read_back == CorpusSettings(problems=ProblemSettings(operands=(2,), leading=0.5), search="equal")
    with pytest.raises(ValueError, match="counts from 2 to 6"):
        load_config(CorpusSettings, {"problems": {"operands": [1]}})
    with pytest.raises(ValueError, match="7 weights"):
        load_config(CorpusSettings, {"styles": [1.0, 2.0]})


def test_a_document_takes_well_under_a_millisecond():
    list(documents(50, 0))
    started = time.process_time()
    list(documents(500, 1))
    assert (time.process_time() - started) / 500 < 0.001
