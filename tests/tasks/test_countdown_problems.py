import json
import random

import polars as pl
import pytest

from jaxinterp.tasks import countdown_problems, countdown_search
from jaxinterp.tasks.countdown import Problem
from jaxinterp.tasks.countdown_problems import ProblemSettings, draw_problems, read_problems

PROBLEMS = [Problem((31, 12, 71), 28), Problem((8, 64, 52, 89), 93), Problem((31, 12, 71), 28)]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("operands", [(2,), (3, 4), (5,)])
def test_drawn_problems_fit_their_settings(split, operands):
    settings = ProblemSettings(operands=operands, largest=30, smallest_target=5, largest_target=60, leading=0.5)
    problems = draw_problems(split, 12, seed=1, settings=settings)
    assert len({(tuple(sorted(problem.numbers)), problem.target) for problem in problems}) == 12
    assert {problem.split for problem in problems} == {split}
    assert {len(problem.numbers) for problem in problems} == set(operands)
    assert all(1 <= number <= 30 for problem in problems for number in problem.numbers)
    assert all(5 <= problem.target <= 60 for problem in problems)
    assert problems[:5] == draw_problems(split, 5, seed=1, settings=settings)
    assert problems != draw_problems(split, 12, seed=2, settings=settings)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_as_many_problems_as_asked_need_a_product_or_a_quotient(count):
    settings, draw = ProblemSettings(operands=(count,), leading=0.3), random.Random(0)
    problems = [countdown_problems.draw_problem(draw, settings) for _ in range(600)]
    needing = [
        problem
        for problem in problems
        if all(candidate.value != problem.target for candidate in countdown_search.sums(problem.numbers))
    ]
    assert 0.24 < len(needing) / len(problems) < 0.36
    ways = [
        {
            candidate.lead.split(" ")[1]
            for candidate in countdown_search.leads(problem.numbers)
            if candidate.value == problem.target
        }
        for problem in needing
    ]
    assert all(ways)
    assert 0.35 < sum("*" in way for way in ways) / len(ways) < 0.65


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"operands": ()}, "counts from 2 to 6"),
        ({"operands": (1, 3)}, "counts from 2 to 6"),
        ({"largest": 0}, "smallest number is 1"),
        ({"smallest_target": 7, "largest_target": 6}, "from 7 to 6"),
        ({"leading": 1.5}, "share from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ProblemSettings(**settings)


def test_targets_out_of_reach_are_said_so():
    settings = ProblemSettings(operands=(2,), largest=3, smallest_target=50, largest_target=60, leading=0.0)
    with pytest.raises(ValueError, match="widen the targets"):
        draw_problems("train", 1, seed=0, settings=settings)
    few = ProblemSettings(operands=(2,), largest=3, smallest_target=1, largest_target=6, leading=0.0)
    with pytest.raises(ValueError, match=r"only \d+ different train problems were found, not 500"):
        draw_problems("train", 500, seed=0, settings=few)


def test_the_public_columns_are_read_from_both_kinds_of_file(tmp_path):
    rows = [{"nums": list(problem.numbers), "target": problem.target, "id": 7} for problem in PROBLEMS]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    assert read_problems(tmp_path / "rows.jsonl") == PROBLEMS
    assert read_problems(str(tmp_path / "rows.parquet")) == PROBLEMS


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"nums": [3, 4], "target": 7.5}', "row 2, column target: 7.5 is no whole number"),
        ('{"nums": [3, 4], "target": true}', "row 2, column target: True"),
        ('{"nums": [3, null], "target": 7}', "row 2, column nums: None is no whole number"),
        ('{"nums": [3, -4], "target": 7}', "row 2, column nums: -4"),
        ('{"nums": "3, 4", "target": 7}', "row 2, column nums: '3, 4' is no list"),
        ('{"nums": [3], "target": 7}', r"row 2, column nums: \[3\] is no list of two"),
        ('{"nums": [], "target": null}', r"row 2, column nums: .*; row 2, column target: None"),
        ('{"nums": [3, 4]}', "row 2 has no column target"),
        ("[3, 4, 7]", "row 2 is no object"),
        ("{nums", "row 2 is not JSON"),
        ("[" * 100_000, "row 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named_with_row_and_column(tmp_path, line, sentence):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"nums": [3, 4], "target": 7}}\n{line}\n')
    with pytest.raises(ValueError, match=sentence) as refused:
        read_problems(file)
    assert str(file) in str(refused.value)


def test_a_bad_table_is_named_with_row_and_column(tmp_path):
    file = tmp_path / "rows.parquet"
    pl.DataFrame({"nums": [[3, 4], [3, None], None, [5, 6], [1]], "target": [7, 7, 7, None, 2]}).write_parquet(file)
    with pytest.raises(ValueError, match=r"row 2, column nums: None .* row 3, column nums: .* row 4, .* and 1 more"):
        read_problems(file)
    pl.DataFrame({"numbers": [[3, 4]], "target": [7]}).write_parquet(file)
    with pytest.raises(ValueError, match="has no column nums; it has numbers, target"):
        read_problems(file)
    pl.DataFrame({"nums": [[3.0, 4.5]], "target": [7]}).write_parquet(file)
    with pytest.raises(ValueError, match=r"row 1, column nums: 3\.0"):
        read_problems(file)


def test_a_file_that_is_none_of_these_is_refused(tmp_path):
    for name, content, sentence in [
        ("rows.csv", b"nums,target", "problems are read from .parquet"),
        ("rows.parquet", b"not parquet", "is not a Parquet file"),
        ("rows.jsonl", b"\xff\xfe", "is not text in UTF-8"),
        ("empty.jsonl", b"\n", "holds no problem"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            read_problems(tmp_path / name)
    with pytest.raises(ValueError, match="is not a file"):
        read_problems(tmp_path / "missing.parquet")
