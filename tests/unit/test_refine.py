"""The search for a better plan: on made-up models whose errors meet, with known answers."""

from __future__ import annotations

import itertools
from math import isinf

import numpy as np
import pytest
from plan_tables import modules_table, sensitivity_table

from vitsense.plan.budget import Budget
from vitsense.plan.predict import DropModel
from vitsense.plan.refine import Company, Search, clearly_lower, neighbours, refine
from vitsense.plan.solve import Near, assignment_of, make_problem, narrowest, solve, within

CURVE = DropModel(ceiling=100, log_c=2.3, exponent=1, scatter=1, points=0, basis="modules")
BUDGET = Budget.parse("avg-bits=4.2")


class Meeting:
    """Errors that add up before they are squared: a plan diverges more than its modules do."""

    def __init__(self, n: int = 6, seed: int = 0) -> None:
        self.modules = modules_table(n, products=0, seed=seed)
        rng = np.random.default_rng(seed)
        names = list(self.modules["module"])
        self.directions = {name: rng.normal(size=4) for name in names}
        frame = sensitivity_table(self.modules, bits=(8, 4, 3, 2), seed=seed)
        alone = [
            self.divergence(dict.fromkeys(names, None) | {row.module: row.format})
            for row in frame.itertuples()
        ]
        frame["kl"] = alone
        self.problem = make_problem(self.modules, frame, int(self.modules["params"].sum()), pins={})
        self.asked: list[int] = []

    def divergence(self, plan) -> float:
        error = np.zeros(4)
        for name, form in plan.items():
            if form is not None:
                error = error + self.directions[name] * 2.0 ** -int(form[3:])
        return float(error @ error)

    def company(self, plan, images):
        self.asked.append(images)
        found = {
            name: {form: self.divergence({**plan, name: form}) for form in near}
            for name, near in neighbours(self.problem, plan).items()
        }
        return Company(self.divergence(plan), found)

    def wholes(self, plans):
        return [[self.divergence(plan)] * 3 for plan in plans]

    def best(self) -> float:
        names = list(self.modules["module"])
        plans = (
            dict(zip(names, forms, strict=True))
            for forms in itertools.product(("int8", "int4", "int3", "int2"), repeat=len(names))
        )
        return min(
            self.divergence(plan)
            for plan in plans
            if assignment_of(self.problem, plan, CURVE).cost.avg_bits <= BUDGET.value
        )


def searched(meeting: Meeting, starts, budget: Budget = BUDGET, sizes=(16, 32), steps: int = 4):
    search = Search(company=meeting.company, divergence=meeting.wholes, sizes=sizes, steps=steps)
    return refine(meeting.problem, budget, CURVE, starts, search)


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_found_is_better_than_the_solved_one_and_keeps_the_budget(seed: int) -> None:
    meeting = Meeting(seed=seed)
    solved = solve(meeting.problem, BUDGET, CURVE).formats
    found = searched(meeting, {"solved": solved})
    assert found.kl == pytest.approx(meeting.divergence(found.formats))
    assert found.kl <= meeting.divergence(solved)
    assert assignment_of(meeting.problem, found.formats, CURVE).cost.avg_bits <= BUDGET.value + 1e-9
    assert meeting.best() <= found.kl + 1e-12


def test_over_many_models_most_of_the_way_to_the_best_plan_is_found() -> None:
    gaps = []
    for seed in range(12):
        meeting = Meeting(n=5, seed=seed)
        solved = solve(meeting.problem, BUDGET, CURVE).formats
        before, best = meeting.divergence(solved), meeting.best()
        if before > 1.05 * best:
            after = searched(meeting, {"solved": solved}).kl
            gaps.append((before - after) / (before - best))
    assert len(gaps) >= 6
    assert np.mean(gaps) > 0.5


def test_steps_tell_what_was_expected_measured_and_kept() -> None:
    meeting = Meeting()
    solved = dict.fromkeys(meeting.modules["module"], "int3")  # far from the best
    found = searched(meeting, {"solved": solved})
    assert found.steps[0].before == pytest.approx(meeting.divergence(solved))
    assert found.steps[0].taken
    for one, other in itertools.pairwise(found.steps):
        assert other.before == (one.after if one.taken else one.before)
        assert (one.after < one.before) == one.taken
        assert one.changed > 0


def test_exchanges_are_measured_on_more_images_only_where_fewer_led_to_nothing() -> None:
    meeting = Meeting()
    found = searched(meeting, {"even": dict.fromkeys(meeting.modules["module"], "int3")})
    kept = sum(step.taken for step in found.steps)
    assert kept >= 1
    assert meeting.asked == [16] * (kept + 1) + [32]
    one = Meeting()
    assert (
        len(searched(one, {"e": dict.fromkeys(one.modules["module"], "int3")}, steps=1).steps) == 1
    )


def test_the_better_of_two_starts_is_taken() -> None:
    meeting = Meeting(seed=2)
    solved = solve(meeting.problem, BUDGET, CURVE).formats
    even = dict.fromkeys(solved, "int4")
    ends = [searched(meeting, {name: plan}).kl for name, plan in (("a", solved), ("b", even))]
    both = searched(meeting, {"a": solved, "b": even})
    assert both.kl == min(ends)
    assert both.start == ("a", "b")[int(np.argmin(ends))]


def test_a_start_beyond_the_budget_is_left_even_for_a_worse_plan() -> None:
    meeting = Meeting(seed=3)
    wide = dict.fromkeys(meeting.modules["module"], "int4")
    wide[meeting.modules["module"].iloc[0]] = "int8"
    tight = Budget.parse("avg-bits=4")
    assert not within(meeting.problem, tight, CURVE, wide)
    found = searched(meeting, {"wide": wide}, budget=tight)
    assert within(meeting.problem, tight, CURVE, found.formats)
    assert found.steps[0].taken


def test_a_budget_that_no_plan_keeps_is_said_by_an_infinite_divergence() -> None:
    meeting = Meeting()
    found = searched(
        meeting,
        {"n": narrowest(meeting.problem, CURVE).formats},
        budget=Budget.parse("avg-bits=1.5"),
    )
    assert isinf(found.kl)
    assert found.steps == ()


def test_pinned_modules_stay() -> None:
    meeting = Meeting(seed=4)
    name = meeting.modules["module"].iloc[1]
    frame = sensitivity_table(meeting.modules, bits=(8, 4, 3, 2), seed=4)
    meeting.problem = make_problem(
        meeting.modules, frame, int(meeting.modules["params"].sum()), pins={name: 3}
    )
    solved = solve(meeting.problem, BUDGET, CURVE).formats
    assert neighbours(meeting.problem, solved)[name] == []
    assert searched(meeting, {"solved": solved}).formats[name] == "int3"


def test_formats_that_break_the_model_are_not_proposed() -> None:
    meeting = Meeting(seed=5)
    solved = solve(meeting.problem, BUDGET, CURVE).formats
    plain = meeting.company

    def broken(plan, images):
        found = plain(plan, images).exchanged
        bad = {n: dict.fromkeys(forms, float("nan")) for n, forms in found.items()}
        return Company(1.0, bad)

    meeting.company = broken
    found = searched(meeting, {"solved": solved})
    assert found.formats == solved
    assert found.steps == ()


def test_a_plan_for_a_drop_is_refused() -> None:
    meeting = Meeting()
    with pytest.raises(ValueError, match="drop"):
        searched(meeting, {}, budget=Budget.parse("max-drop=1"))


@pytest.mark.parametrize("changes", [0, 1, 2, 4])
def test_near_allows_so_many_changes_as_brute_force(changes: int) -> None:
    meeting = Meeting(n=5, seed=6)
    problem, base = meeting.problem, dict.fromkeys(meeting.modules["module"], "int3")
    names, forms = list(base), ("int8", "int4", "int3", "int2")
    least = min(
        sum(problem.divergence[n][f] for n, f in plan.items())
        for choice in itertools.product(forms, repeat=len(names))
        if sum(a != b for a, b in zip(choice, base.values(), strict=True)) <= changes
        and assignment_of(
            problem, plan := dict(zip(names, choice, strict=True)), CURVE
        ).cost.avg_bits
        <= BUDGET.value
    )
    chosen = solve(problem, BUDGET, CURVE, Near(base, changes)).formats
    assert sum(problem.divergence[n][f] for n, f in chosen.items()) == pytest.approx(least)


def test_noise_is_rarely_taken_for_a_gain_and_a_gain_is_found() -> None:
    rng = np.random.default_rng(0)
    before = rng.exponential(0.1, size=(2000, 32))
    noise = before + rng.normal(0, 0.05, size=before.shape)
    wrong = np.mean([clearly_lower(a, b) for a, b in zip(noise, before, strict=True)])
    assert wrong < 0.04
    better = 0.6 * noise
    right = np.mean([clearly_lower(a, b) for a, b in zip(better, before, strict=True)])
    assert right > 0.9


@pytest.mark.parametrize(
    ("after", "before"),
    [([0.1], [5.0]), ([float("nan"), 0.1], [1.0, 1.0]), ([0.999, 0.999], [1.0, 1.0])],
    ids=["one image", "not a number", "too little"],
)
def test_no_gain_is_claimed(after, before) -> None:
    assert not clearly_lower(after, before)
