"""Grids, draws, rankings: all that a sweep decides without training."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmnist_tf.errors import UsageError
from fmnist_tf.settings.config import RunConfig
from fmnist_tf.train import build_parser
from fmnist_tf.trials import (
    Range,
    Result,
    Trial,
    describe_for_wandb,
    describe_spread,
    plan_points,
    plan_trials,
    rank_outcomes,
    read_space,
    show_point,
    tabulate,
)


def test_values_are_read_as_their_flags_read_them() -> None:
    space = read_space(
        "learning_rate=1e-4,3e-4,none --units=0,512 augment=none,flip,flip+erasing "
        "lr-finder=true,false head=gap"
    )
    assert space == {
        "learning_rate": (1e-4, 3e-4, None),
        "units": (0, 512),
        "augment": ((), ("flip",), ("flip", "erasing")),
        "lr_finder": (True, False),
        "head": ("gap",),
    }


def test_ranges() -> None:
    assert read_space("learning_rate=1e-5..1e-2:log dropout=0..0.5 units=8..64") == {
        "learning_rate": Range(1e-5, 1e-2, is_log=True, is_whole=False),
        "dropout": Range(0.0, 0.5, is_log=False, is_whole=False),
        "units": Range(8, 64, is_log=False, is_whole=True),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("units", "--grid units: expected SETTING=VALUE,VALUE"),
        ("units=", "expected SETTING=VALUE,VALUE"),
        ("unit=3", "unknown setting unit in --grid; did you mean units?"),
        ("split_seed=3", "unknown setting split_seed"),
        ("units=3 units=4", "--grid units: expected once, found twice"),
        ("units=3,3", "a value stands there twice"),
        ("units=3,x", "--units x: expected a whole number"),
        ("units=-1", "--grid: --units -1: expected a whole number from 0"),
        ("head=mean", "--head mean: expected one of"),
        ("optimizer=adam,lion", "lion"),
        ("augment=turn", "--augment turn: expected some of flip"),
        ("dropout=0..1.5", "--dropout 1.5: expected a number from 0, below 1"),
        ("dropout=0.5..0.5", "expected two rising numbers"),
        ("dropout=0..0.5:log", "expected two numbers above 0, rising"),
        ("head=1..2", "head is no number to draw"),
        ("lr_finder=yes", "--lr-finder yes: expected true or false"),
        ("seed=1,2", "--grid seed: cannot be varied; --seeds N"),
        ("test_time_flip=true,false", "it changes what is said of an epoch"),
        ("phase=frozen", "--grid phase: cannot be varied"),
        ("limit=100,200", "trials are compared on the same images"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        read_space(text)
    assert said in str(error.value)


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_is_a_space_or_one_clear_error(text: str) -> None:
    said = ""
    try:
        space = read_space(text)
    except UsageError as error:
        said, space = str(error), {}
    assert said.isprintable()
    known = set(RunConfig.model_fields)
    assert space.keys() <= known


def test_a_grid_has_every_combination_once() -> None:
    points = plan_points(read_space("units=0,8 dropout=0,0.5,0.9"), None, seed=0)
    assert points == [{"units": u, "dropout": d} for u in (0, 8) for d in (0.0, 0.5, 0.9)]
    assert plan_points({}, None, seed=0) == [{}]


def test_a_draw_is_of_the_seed_and_has_no_point_twice() -> None:
    space = read_space("learning_rate=1e-5..1e-2:log units=4..64 head=gap,flatten")
    points = plan_points(space, 30, seed=3)
    assert points == plan_points(space, 30, seed=3) != plan_points(space, 30, seed=4)
    assert len({tuple(point.items()) for point in points}) == 30
    rates = sorted(point["learning_rate"] for point in points)
    assert 1e-5 <= rates[0]
    assert rates[-1] <= 1e-2
    assert rates[15] < 2e-3  # evenly in the logarithm: half lie below the geometric middle, 3e-4
    assert {type(point["units"]) for point in points} == {int}
    assert {point["head"] for point in points} == {"gap", "flatten"}


def test_more_draws_than_points_are_the_whole_grid() -> None:
    space = read_space("units=0,8 head=gap,flatten")
    assert plan_points(space, 9, seed=0) == plan_points(space, None, seed=0)
    assert len(plan_points(space, 3, seed=0)) == 3
    assert len(plan_points(read_space("units=1..3"), 9, seed=0)) == 3  # there are no more


def test_both_ends_of_a_range_are_drawn() -> None:
    whole, rng = Range(1, 3, is_log=False, is_whole=True), random.Random(0)
    drawn = [whole.draw(rng) for _ in range(900)]
    assert all(250 < drawn.count(number) < 350 for number in (1, 2, 3))
    assert len(plan_points(read_space("units=1000..1003"), 20, seed=0)) == 4
    assert len(plan_points(read_space("ema_decay=0.999..0.9999"), 20, seed=0)) == 20


def test_so_many_seeds_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 10,000 trials"):
        plan_trials([{}], range(10**9))


def test_a_range_needs_a_number_of_draws() -> None:
    with pytest.raises(UsageError, match="expected --random N"):
        plan_points(read_space("dropout=0..0.5"), None, seed=0)
    with pytest.raises(UsageError, match="at most 10,000"):
        plan_points(read_space("dropout=0..0.5"), 10_001, seed=0)


def test_every_point_has_its_first_seed_before_any_second() -> None:
    trials = plan_trials([{"units": 0}, {"units": 8}], range(5, 7))
    assert [(t.number, t.point["units"], t.seed) for t in trials] == [
        (1, 0, 5), (2, 8, 5), (3, 0, 6), (4, 8, 6),
    ]  # fmt: skip


TRIALS = plan_trials([{"units": 0}, {"units": 8}, {"units": 16}], range(2))


def results(*correct: int | None) -> dict[int, Result]:
    """Return results of `TRIALS` in order; None: failed."""
    return {
        number: Result(error="no memory") if n is None else Result(n, 100, 1 - n / 200, 2, 3.0)
        for number, n in enumerate(correct, start=1)
    }


def test_the_best_has_the_highest_mean_and_no_failure() -> None:
    ranked = rank_outcomes(TRIALS, results(80, 81, 99, 80, 81, None))
    assert [outcome.point["units"] for outcome in ranked] == [8, 0, 16]
    assert [outcome.is_whole for outcome in ranked] == [True, True, False]
    assert ranked[2].error == "no memory"
    assert ranked[0].accuracies == [0.81, 0.81]


def test_of_equals_the_lower_loss_is_first() -> None:
    found = results(80, 80, 70, 80, 80, 70)
    found[2] = dataclasses.replace(found[2], loss=0.1)
    assert rank_outcomes(TRIALS, found)[0].point == {"units": 8}


def test_rounding_does_not_tell_equals_apart() -> None:
    """The sums are equal, the means of the shares are not."""
    points = [{"units": 0}, {"units": 8}]
    trials = plan_trials(points, range(3))
    correct = [5483, 5488, 5667, 5664, 5388, 5386]
    found = {n: Result(c, 6000, 0.5 if n % 2 else 0.4, 1) for n, c in enumerate(correct, start=1)}
    assert rank_outcomes(trials, found)[0].point == {"units": 8}
    found = {n: dataclasses.replace(r, loss=0.9 - r.loss) for n, r in found.items()}
    assert rank_outcomes(trials, found)[0].point == {"units": 0}


def test_a_trial_that_has_not_ended_is_not_the_best() -> None:
    ranked = rank_outcomes(TRIALS, results(99, 80, 70, 99, 80))
    assert [outcome.point["units"] for outcome in ranked] == [0, 8, 16]
    assert not ranked[2].is_whole


def test_spread_is_the_sample_standard_deviation() -> None:
    assert describe_spread([0.9, 0.91, 0.92]) == "0.9100 ± 0.0100"
    assert describe_spread([0.9]) == "0.9000"
    assert describe_spread([]) == "-"


def test_the_table() -> None:
    header, rows = tabulate(rank_outcomes(TRIALS, results(80, 81, 99, 80, 83, None)))
    assert header == ["trials", "units", "val accuracy", "n", "best epoch", "seconds"]
    assert rows[0] == ["2,5", "8", "0.8200 ± 0.0141", "2", "2,2", "6"]
    assert rows[2] == ["3,6", "16", "failed: no memory", "1", "2", "3"]


def test_the_table_of_tested_trials() -> None:
    trials = [Trial(1, {}, 0), Trial(2, {}, 1)]
    found = {n: Result(80, 100, 0.5, 2, 3.0, 70 + n, 100) for n in (1, 2)}
    header, rows = tabulate(rank_outcomes(trials, found))
    assert header == ["trials", "val accuracy", "test accuracy", "n", "best epoch", "seconds"]
    assert rows == [["1,2", "0.8000 ± 0.0000", "0.7150 ± 0.0071", "2", "2,2", "6"]]


def test_a_point_is_shown_as_a_grid_takes_it() -> None:
    text = "learning_rate=0.0003 augment=flip+erasing lr_finder=true early_stopping=none"
    (point,) = plan_points(read_space(text), None, seed=0)
    assert show_point(point) == text


def test_wandb_agents_get_flags_that_train_reads() -> None:
    space = read_space(
        "learning_rate=1e-5..1e-2:log dropout=0..0.5 units=8..64 batch_size=8..512:log "
        "augment=none,flip+erasing lr_finder=true,false early_stopping=none,3"
    )
    content = describe_for_wandb(space, 7, ["--phase=frozen"])
    assert content["method"] == "random"
    assert content["run_cap"] == 7
    assert content["project"] == "fmnist-tf"
    assert content["command"][4:] == [
        "--phase=frozen", "--no-lr-finder", "${args_no_boolean_flags}",
    ]  # fmt: skip
    assert content["metric"] == {"name": "epoch/val_accuracy", "goal": "maximize"}
    parameters = content["parameters"]
    assert parameters["learning-rate"] == {
        "distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2,
    }  # fmt: skip
    assert parameters["dropout"]["distribution"] == "uniform"
    assert parameters["units"] == {"distribution": "int_uniform", "min": 8, "max": 64}
    sizes = parameters["batch-size"]["values"]
    assert (sizes[0], sizes[-1]) == (8, 512)
    assert all(isinstance(size, int) for size in sizes)
    # As the agent makes flags: a false switch is left out, a true one has no value.
    for pick in (0, -1):
        values = {name: (p.get("values") or [p["min"], p["max"]])[pick] for name, p in
                  parameters.items()}  # fmt: skip
        words = ["--no-lr-finder"] + [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in values.items()
            if value is not False
        ]
        flags = build_parser().parse_args(words)
        assert flags.augment == ((), ("flip", "erasing"))[pick]
        assert flags.early_stopping == (None, 3)[pick]
        assert getattr(flags, "lr_finder", False) is (pick == 0)
    assert describe_for_wandb(read_space("units=0,8"), None, [])["method"] == "grid"
