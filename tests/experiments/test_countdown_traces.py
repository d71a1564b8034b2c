import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.experiments import countdown_traces
from jaxinterp.experiments.countdown_traces import Written
from jaxinterp.tasks import countdown, verification

PROBLEM = countdown.Problem((31, 12, 71), 28)


def fake(length, opens):
    """A trace of the given length with a verdict, accepted if it is the last, at each of the given tokens."""
    verdicts = tuple(
        verification.Verdict(
            valid=place == opens[-1], open=place, result=place - 1, result_digits=(), mentions=(), stated=0
        )
        for place in opens
    )
    trace = countdown.parse(PROBLEM.prompt)
    return Written(tuple(range(100, 100 + length)), verdicts, trace)


@pytest.mark.parametrize("batch_size", [8, 32])
def test_batches_hold_each_chosen_verdict_once_at_its_token(batch_size):
    rng = np.random.default_rng(0)
    written = [fake(length, [length // 2, length - 1]) for length in rng.integers(40, 300, 45).tolist()]
    chosen = [(index, place) for index in range(45) for place in (1, 0)][:-5]
    batches = countdown_traces.batch_verdicts(written, chosen, batch_size)
    orders = np.concatenate([batch.order for batch in batches])
    assert sorted(orders.tolist()) == list(range(len(chosen)))
    for batch in batches:
        assert batch.ids.shape == batch.mask.shape and batch.ids.shape[0] <= batch_size
        for row, order, slot, earlier in zip(
            batch.rows, batch.order, batch.slots("verdict"), batch.slots("result"), strict=True
        ):
            index, place = chosen[order]
            assert batch.ids[row, slot] == 100 + written[index].verdicts[place].open
            assert earlier == slot - 1
            assert batch.mask[row].sum() == len(written[index].ids)
            assert batch.tokens_at("verdict")[row, written[index].verdicts[place].open]
    assert len({batch.ids.shape for batch in batches}) <= 6
    assert sum(batch.tokens_at("result").sum() for batch in batches) == len(chosen)


def test_verdicts_are_chosen_per_trace():
    written = [fake(90, [20, 40, 60, 80]), fake(50, [49]), fake(90, [30, 70])]
    chosen = countdown_traces.choose_verdicts(written, np.random.default_rng(0), rejected_per_trace=2)
    assert [choice for choice in chosen if choice[0] > 0] == [(1, 0), (2, 1), (2, 0)]
    first = [place for index, place in chosen if index == 0]
    assert first[0] == 3 and len(first) == 3 and first[1:] == sorted(set(first[1:]))


def test_pair_members_carry_the_verdict_that_would_be_right():
    model = ji.load("builtin:countdown-6m-grpo")
    trace = countdown.parse(countdown.write(PROBLEM, ["31 + 12 - 71", "71 - 31 - 12"]))
    pair = verification.minimal_pair(trace, trace.attempts[1], np.random.default_rng(0))
    assert pair is not None
    original, twin = countdown_traces.pair_members(model, pair)
    assert len(original.ids) == len(twin.ids) == original.verdicts[0].open + 1
    assert original.verdicts[0].valid and not twin.verdicts[0].valid
    assert sum(a != b for a, b in zip(original.ids, twin.ids, strict=True)) in (
        3,
        6,
    )  # three mentions, one or two digits
    assert twin.trace.problem.target == pair.target


def test_a_model_writes_traces_that_end_with_a_verdict():
    model = ji.load("builtin:countdown-6m-grpo")
    problems = countdown.eval_problems()[:4]
    written = countdown_traces.write_traces(model, problems, max_new_tokens=48, batch_size=4)
    tokenizer = model.require_tokenizer()
    assert 1 <= len(written) <= 4
    for trace in written:
        assert trace.trace.problem in problems
        assert tokenizer.decode(trace.ids[-1:]) == " (" and trace.verdicts[-1].open == len(trace.ids) - 1
        for verdict, attempt in zip(trace.verdicts, trace.trace.attempts, strict=True):
            assert verdict.valid == attempt.valid == (attempt.result == trace.trace.problem.target)
