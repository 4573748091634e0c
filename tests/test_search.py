"""What a sweep tries: axes in Hydra's syntax, grids, and what TPE proposes."""

import math

import pytest

import train.fit  # noqa: F401 - registers the schema that points are composed with
from configs.compose import Axis, ConfigError, parse_axis
from train.search import Space, Told, grid_points, grid_size, probes, propose


def space(**axes):
    return Space([parse_axis(key, text) for key, text in axes.items()])


@pytest.mark.parametrize(
    ("text", "values", "ordered"),
    [
        ("0.3", ("0.3",), True),
        ("0.2,0.3,0.5", ("0.2", "0.3", "0.5"), True),
        ("0.5, 0.2", ("0.5", "0.2"), False),
        ("0.2,0.2", ("0.2",), True),
        ("choice(64,128)", ("64", "128"), True),
        ("range(1,5)", ("1", "2", "3", "4"), True),
        ("range(0,10,4)", ("0", "4", "8"), True),
        ("adamw,sgd", ("adamw", "sgd"), False),
        ("'a b','c,d'", ("'a b'", "'c,d'"), False),
        ("1e-4,1e-3", ("0.0001", "0.001"), True),
        ("true,false", ("True", "False"), False),
    ],
)
def test_values_are_read_as_hydra_reads_them(text, values, ordered):
    assert parse_axis("key", text) == Axis("key", values, ordered)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("interval(0.1,0.9)", Axis("key", low=0.1, high=0.9)),
        ("int(interval(1,5))", Axis("key", low=1, high=5, whole=True)),
        ("tag(log,interval(1e-4,1e-2))", Axis("key", low=1e-4, high=1e-2, log=True)),
        ("tag(log,int(interval(64,2048)))", Axis("key", low=64, high=2048, whole=True, log=True)),
    ],
)
def test_intervals_are_read_with_their_tags(text, axis):
    assert parse_axis("key", text) == axis


@pytest.mark.parametrize(
    "text", ["glob(*)", "choice(", "range(5,1)", "interval(2,1)", "tag(log,interval(0,1))", "a=b,"]
)
def test_what_is_no_axis_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="key="):
        parse_axis("key", text)


def test_a_grid_is_every_combination_with_the_last_axis_fastest():
    found = list(grid_points(space(margin="0.2,0.3", depth="2", seed="0,1")))
    assert [(each["margin"], each["depth"], each["seed"]) for each in found] == [
        ("0.2", "2", "0"),
        ("0.2", "2", "1"),
        ("0.3", "2", "0"),
        ("0.3", "2", "1"),
    ]


def test_a_knob_belongs_only_to_points_whose_objective_looks_at_it():
    both = space(objective="hinge,infonce", margin="0.2,0.3", temperature="0.1,0.2,0.4", depth="2,3")
    assert grid_size(both) == 2 * 2 + 3 * 2 == len(list(grid_points(both)))
    assert {tuple(sorted(each)) for each in grid_points(both)} == {
        ("depth", "margin", "objective"),
        ("depth", "objective", "temperature"),
    }


def test_an_experiment_brings_its_objective():
    assert grid_size(space(experiment="original", margin="0.2,0.3")) == 2


def test_a_knob_that_no_objective_looks_at_is_refused():
    with pytest.raises(ConfigError, match="temperature means nothing to objective=hinge, warp"):
        space(objective="hinge,warp", temperature="0.1,0.2").refuse_idle_axes()


def test_probes_hold_every_value_and_both_ends_of_every_interval():
    found = list(probes(space(depth="1,2,3", margin="interval(0.1,0.5)", optimizer="adamw")))
    assert {each["depth"] for each in found} == {"1", "2", "3"}
    assert {each["margin"] for each in found} == {"0.1", "0.5"}
    assert len(found) == 4


SEARCHED = {
    "objective": "hinge,infonce",
    "margin": "interval(0.05,0.95)",
    "temperature": "tag(log,interval(0.01,1))",
    "depth": "range(1,4)",
    "hidden_dim": "tag(log,int(interval(64,2048)))",
    "optimizer": "adamw,sgd",
    "max_epochs": "5",
}


def goodness(chosen):
    """Best at infonce, temperature 0.1, and one layer."""
    if chosen["objective"] == "hinge":
        return 0.0
    return 1 - abs(math.log10(float(chosen["temperature"])) + 1) - 0.1 * int(chosen["depth"])


def searched(count, told=(), at=SEARCHED):
    told, axes = list(told), space(**at)
    while len(told) < count:
        chosen = propose(axes, told, seed=0, number=len(told) + 1)
        told.append(Told(chosen, "done", goodness(chosen)))
    return told


def test_proposals_lie_in_the_space():
    for each in searched(15):
        chosen = each.chosen
        assert ("margin" in chosen) == (chosen["objective"] == "hinge") != ("temperature" in chosen)
        assert 0.05 <= float(chosen.get("margin", 0.5)) <= 0.95
        assert 0.01 <= float(chosen.get("temperature", 0.5)) <= 1
        assert chosen["depth"] in ("1", "2", "3")
        assert 64 <= int(chosen["hidden_dim"]) <= 2048
        assert (chosen["optimizer"] in ("adamw", "sgd"), chosen["max_epochs"]) == (True, "5")


def test_tpe_finds_what_is_good():
    last = searched(40)[-10:]
    assert sum(each.chosen["objective"] == "infonce" for each in last) >= 7
    assert max(each.value for each in last) > 0.7


def test_a_search_that_is_taken_up_again_proposes_what_it_would_have_proposed():
    whole = searched(16)
    assert searched(16, told=whole[:5]) == whole == searched(16, told=whole[:13])


def test_a_point_is_proposed_once():
    small = {"depth": "1,2", "optimizer": "adamw,sgd", "objective": "infonce", "temperature": "0.1"}
    told = searched(4, at=small)
    assert len({tuple(sorted(each.chosen.items())) for each in told}) == 4
    assert propose(space(**small), told, seed=0, number=5) is None


def test_where_points_failed_few_more_are_proposed():
    rates = [10 ** (-4 + step / 5) for step in range(20)]  # the upper half crashes
    told = [Told({"learning_rate": f"{rate:.3g}"}, "done" if rate < 1e-2 else "failed", 0.5) for rate in rates]
    at = space(learning_rate="tag(log,interval(1e-4,1))")
    found = [float(propose(at, told, seed=0, number=number)["learning_rate"]) for number in range(21, 31)]
    assert sum(rate > 1e-2 for rate in found) <= 2


def test_points_under_way_are_told_of():
    told = [Told({"depth": "1"}, "done", 0.5), Told({"depth": "2"}, "open")]
    assert propose(space(depth="1,2,3"), told, seed=0, number=3) == {"depth": "3"}
