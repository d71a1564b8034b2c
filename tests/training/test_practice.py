import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.models.nnx import Decoder
from jaxinterp.tasks import countdown
from jaxinterp.tasks.countdown import Problem
from jaxinterp.tasks.countdown_grammar import write_response
from jaxinterp.tasks.countdown_problems import ProblemSettings
from jaxinterp.training.practice import CountdownTask, examine, row_width

PROBLEM = Problem((31, 12, 71), 28)


@pytest.fixture(scope="module")
def model():
    return ji.load("builtin:countdown-6m-grpo")


@pytest.fixture(scope="module")
def task(model):
    return CountdownTask(model.require_tokenizer(), ProblemSettings(operands=(2, 3)), seed=4)


def test_responses_are_judged_as_they_are_written(task):
    right = write_response(PROBLEM, ["31 + 12 - 71", "71 - 31 - 12"], "this works")
    wrong = write_response(PROBLEM, ["31 + 12 - 71"], "yes")
    texts = [right, wrong, right[:-40], right.replace("(not 28)", "(this works)")]
    responses = [[*task.tokenizer.encode(text), task.tokenizer.eos] for text in texts]
    rewards, measures = task.judge([PROBLEM] * 4, responses, [True, True, False, True])
    assert rewards.tolist() == [1.0, 0.1, 0.0, 1.0]
    assert measures["reward"] == pytest.approx(rewards.mean()) and measures["correct"] == 0.5
    assert measures["truncated"] == 0.25 and measures["style this works"] == 0.75 and measures["style yes"] == 0.25
    assert measures["style_entropy"] == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert measures["accepted_true"] == pytest.approx(3 / 4) and measures["rejected_true"] == 1.0


def test_what_is_asked_is_a_function_of_the_step(task):
    asked, prompts = task.ask(3, 5)
    assert (asked, prompts) == task.ask(3, 5) and asked != task.ask(4, 5)[0]
    assert {problem.split for problem in asked} == {"train"} and {len(problem.numbers) for problem in asked} <= {2, 3}
    assert [task.tokenizer.decode(prompt) for prompt in prompts] == [problem.prompt for problem in asked]
    given = CountdownTask(task.tokenizer, problems=[PROBLEM])
    assert given.ask(0, 2)[0] == [PROBLEM, PROBLEM]
    assert row_width(prompts) % 16 == 0 and row_width(prompts) >= max(map(len, prompts))


def test_a_model_that_can_is_found_to(model):
    decoder = Decoder.from_weights(model.architecture, model.weights())
    problems = [problem for problem in countdown.eval_problems() if len(problem.numbers) == 3][:5]
    table, measures = examine(decoder, model.require_tokenizer(), problems, tokens=400, rows=4)
    assert table["reward"].to_list() == [1.0] * 5 and table["style"].unique().to_list() == ["this works"]
    assert measures["correct"] == 1.0 and measures["accepted_true"] == 1.0 and table["tokens"].min() > 40
    assert countdown.score(table["response"][0], problems[0]) == 1.0
    with pytest.raises(ValueError, match=r"jax.random.key\(0\)"):
        examine(decoder, model.require_tokenizer(), problems, temperature=1.0)
    with pytest.raises(ValueError, match="no room"):
        examine(decoder, model.require_tokenizer(), problems, tokens=32)
    with pytest.raises(ValueError, match="no problems"):
        examine(decoder, model.require_tokenizer(), [], key=jax.random.key(0))
