import json

import numpy as np
import polars as pl
import pytest

import jaxinterp as ji
from jaxinterp.experiments import claims, finetuning
from jaxinterp.experiments.self_verification import behaviour, cases, yes_no
from jaxinterp.models.toy import toy
from jaxinterp.tasks import continuations, countdown
from tests.experiments import planted_parts, verdict_table

SMALL = finetuning.Config(
    selection=6, scan=3, questions=8, pairs=3, draws=2, problems=4, sampled=4, max_new_tokens=112, batch_size=4
)


@pytest.fixture(scope="module")
def models():
    return {"model": ji.load("builtin:countdown-6m-grpo"), "start": ji.load("builtin:countdown-6m-sft")}


@pytest.fixture(scope="module")
def inputs():
    return {
        "verdicts": verdict_table.write(),
        "ablation": planted_parts.of_heads(),
        "units": planted_parts.of_units(),
    }


@pytest.fixture(scope="module")
def small(models, inputs):
    return finetuning.run(SMALL, models, inputs)


def table_of(cosine, change, overlap, drop, gain, entropies, template):
    """A table as `run` would give it."""
    known = {"low": 0.0, "high": 1.0, "n": 300}
    rows = [
        {"part": "weights", "measure": measure, "kind": "Q", "layer": 4, "index": index, "value": value, "n": 1}
        for measure, value in (("cosine", cosine), ("norm change", change))
        for index in range(3)
    ]
    rows += [
        {"part": "weights", "measure": measure, "kind": "Q", "condition": "all others", "control": True, "value": 1.0}
        for measure in ("cosine", "norm change")
    ]
    for name in ("target", "circuit"):
        rows.append({"part": "heads", "measure": "overlap", "condition": name, "value": overlap, "n": 5})
        rows += [
            {"part": "heads", "measure": "number of heads", "condition": name, "model": model, "heads": "L4.H5"}
            for model in ("model", "start")
        ]
    asked = {"part": "questions", "model": "start"} | known
    rows.append(asked | {"measure": "drop of balanced accuracy", "condition": "target", "value": drop})
    for model, entropy in zip(("start", "model"), entropies, strict=True):
        for measure in ("solved greedily", "solved at temperature 1", "ended"):
            rows.append({"part": "behaviour", "measure": measure, "model": model, "value": 0.9} | known)
        rows.append({"part": "behaviour", "measure": "style entropy", "model": model, "value": entropy} | known)
        rows.append({"part": "behaviour", "measure": "in the template", "model": model, "value": template} | known)
    rows.append({"part": "behaviour", "measure": "gain, greedily", "model": "both", "value": gain} | known)
    return pl.DataFrame([{"control": False} | row for row in rows], schema=finetuning._COLUMNS)


def test_training_as_the_paper_describes_it_meets_every_claim():
    held = finetuning.check(table_of(1.0, 1e-6, 0.8, 0.5, 0.1, (1.6, 0.05), 0.99))
    assert len(held) == 8 and all(claim.met for claim in held), [claim for claim in held if not claim.met]


def test_training_that_changed_all_and_taught_nothing_meets_none():
    held = finetuning.check(table_of(0.3, 0.2, 0.1, 0.0, 0.0, (0.5, 0.05), 0.2))
    assert not any(claim.met for claim in held)


def test_no_heads_to_compare_is_not_met():
    held = finetuning.check(table_of(1.0, 1e-6, None, None, 0.1, (1.6, 0.05), 0.99))
    assert [claim.met for claim in held] == [True, True, False, False, False, True, True, True]


@pytest.mark.slow
def test_weights_of_what_is_listed_are_compared(small):
    weights = small.filter(part="weights", measure="cosine")
    listed = weights.filter(~pl.col("control"))
    assert listed.filter(kind="gate").height == 4 and listed.filter(kind="O").height == 4
    assert listed["value"].is_between(0.99, 1.0).all() and (listed["value"] < 1.0).all()
    assert set(weights.filter("control")["kind"]) == {"out", "gate", "up", "Q", "K", "V", "O"}


@pytest.mark.slow
def test_the_start_model_uses_the_same_heads(small):
    found = small.filter(part="heads", measure="number of heads", condition="target", model="start")["heads"].item()
    assert {"L4.H5", "L4.H0"} <= set(found.split())
    overlap = small.filter(part="heads", measure="overlap")
    assert overlap["condition"].to_list() == ["paper", "target", "circuit"]
    assert overlap["value"].to_list()[0] is None and overlap["value"].to_list()[1] > 0


@pytest.mark.slow
def test_without_its_heads_the_start_model_says_no(small):
    def value(measure, condition, model="start"):
        return small.filter(part="questions", measure=measure, condition=condition, model=model)["value"].item()

    for model in ("start", "model"):
        assert value("balanced accuracy", "none", model) == value("area under the curve", "none", model) == 1.0
        assert value("p(Yes) + p(No)", "none", model) > 0.99
        assert value("Yes to right attempts", "target", model) < 0.3 < value("No to wrong attempts", "target", model)
    assert value("drop of balanced accuracy", "target") > 0.3 > value("drop of balanced accuracy", "random, outside")


@pytest.mark.slow
def test_answers_turn_with_the_outputs_of_the_twins_heads(small):
    turned = small.filter(part="patching", measure="answers that turn")
    assert turned.height == 2 * 2 * 4
    assert (turned.filter(condition="none")["value"] == 0).all()
    random = turned.filter(condition="random, outside")["value"].mean()
    assert turned.filter(condition="circuit")["value"].mean() > random


@pytest.mark.slow
def test_behaviour_is_measured_on_the_same_problems(small):
    here = small.filter(part="behaviour")
    for measure in ("solved greedily", "solved at temperature 1", "style entropy", "in the template"):
        assert here.filter(measure=measure)["model"].sort().to_list() == ["model", "start"]
    styles = here.filter(measure="style").group_by("model").agg(pl.col("value").sum())
    assert np.allclose(styles["value"], 1.0)
    assert (here["n"] == 4).all()


def test_questions_are_balanced_and_end_in_front_of_the_answer(models, inputs):
    some = cases.load(models["model"], inputs["verdicts"], "evaluation")
    right, wrong = yes_no.ask(models["model"], some[:-2])
    assert len(right) == len(wrong) == len(some) // 2 - 2
    assert all(text.endswith(".\nIs it right? ") and text.count("\n") == 2 for text in (*right, *wrong))
    tokenizer = models["start"].require_tokenizer()
    assert tokenizer.token(tokenizer.encode(right[0])[-1]) == "right? "


def test_numbers_of_planted_answers():
    margin = np.array([[2.0, 1.0, -3.0, 4.0], [-1.0, -2.0, -4.0, 3.0]])
    answers = yes_no.Answers(margin, np.full((2, 4), 0.25), np.full((2, 4), 0.5))
    found = {name: numbers["value"] for name, numbers in yes_no.measure(answers).items()}
    assert found["Yes to right attempts"] == found["No to wrong attempts"] == found["balanced accuracy"] == 0.75
    pairs = [(a > b) + 0.5 * (a == b) for a in margin[0] for b in margin[1]]
    assert found["area under the curve"] == pytest.approx(np.mean(pairs))
    assert found["p(Yes) + p(No)"] == 0.5
    always_no = yes_no.Answers(margin - 10, answers.yes, answers.mass)
    assert yes_no.measure(always_no)["balanced accuracy"]["value"] == 0.5
    assert yes_no.measure(always_no)["area under the curve"]["value"] == found["area under the curve"]
    dropped = yes_no.drop(answers, always_no, np.array([0, 1, 0, 1]))
    assert dropped["value"] == 0.25 and dropped["low"] <= 0.25 <= dropped["high"]


def test_texts_of_planted_styles_have_their_entropy():
    problem = countdown.Problem((31, 12, 71), 28)
    text = countdown.write(problem, ["31 + 12 - 71", "71 - 31 - 12"])
    other = text.replace("this works", "success").replace("not 28", "incorrect")
    cut = text[: text.index(" (this")]
    rows = {(row["measure"], row.get("kind")): row["value"] for row in behaviour._styles([text, other, cut, text])}
    assert rows["style", "this works"] == 0.75 and rows["style", "success"] == 0.25
    assert rows["style entropy", None] == pytest.approx(continuations.entropy("aaab"))
    assert rows["ended", None] == rows["in the template", None] == 0.75


@pytest.mark.slow
def test_the_records_can_be_written_as_json(small):
    json.dumps(claims.records(finetuning.check(small)), allow_nan=False)


@pytest.mark.slow
def test_the_figure_has_four_panels(small):
    drawn = finetuning.figure(small)
    assert [axes.get_title(loc="left")[0] for axes in drawn.axes] == ["a", "b", "c", "d"]


def test_models_of_two_trainings_are_refused(models, inputs):
    other = toy("qwen2", tokenizer=models["model"].require_tokenizer(), vocab_size=76)
    with pytest.raises(ValueError, match="differ in architecture"):
        finetuning.run(SMALL, {"model": models["model"], "start": other}, inputs)


def test_an_evaluation_without_wrong_attempts_is_one_sentence(models, inputs):
    accepted = inputs["verdicts"].filter((pl.col("split") != "evaluation") | pl.col("valid"))
    with pytest.raises(ValueError, match="no right and wrong attempts"):
        finetuning.run(SMALL, models, inputs | {"verdicts": accepted})
