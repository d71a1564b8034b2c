import numpy as np
import polars as pl
import pytest

from jaxinterp.figures import training_log


def _practice(height, seed):
    draw = np.random.default_rng(seed)
    columns = ["reward", "correct", "style_entropy", "accepted_true", "rejected_true", "attempts", "kl", "truncated"]
    steps = {"step": np.arange(1, height + 1), "loss": draw.random(height)}
    return pl.DataFrame(steps | {column: draw.random(height) for column in columns})


def test_every_measure_of_every_run_is_a_line_of_means():
    logs = {"one": _practice(300, 0), "two": _practice(20, 1)}
    figure = training_log.draw(logs)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[0] == "a  Reward" and titles[1] == "b  Entropy of styles" and len(titles) == 6
    reward = figure.axes[0].get_lines()
    assert [line.get_label() for line in reward] == ["one, reward", "one, correct", "two, reward", "two, correct"]
    assert len(reward[0].get_xdata()) == 60 and len(reward[2].get_xdata()) == 20
    assert np.mean(reward[0].get_ydata()) == pytest.approx(logs["one"]["reward"].mean())


def test_supervised_logs_show_the_loss_and_what_is_not_known_is_left_out():
    log = pl.DataFrame({"step": [1, 2], "loss": [2.0, 1.0], "held_out": [None, 1.5], "verdict": [None, None]})
    figure = training_log.draw({"run": log})
    loss, held_out = figure.axes[0].get_lines()
    assert loss.get_ydata().tolist() == [2.0, 1.0] and held_out.get_ydata().tolist() == [1.5]


def test_logs_of_two_kinds_are_refused():
    with pytest.raises(ValueError, match="all of supervised training or all of practice"):
        training_log.draw({"one": _practice(3, 0), "two": pl.DataFrame({"step": [1], "loss": [1.0]})})
    with pytest.raises(ValueError, match="0 logs"):
        training_log.draw({})
