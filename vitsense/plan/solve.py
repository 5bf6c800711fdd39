"""Choose bit widths under a budget: a multiple-choice knapsack, solved exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vitsense.errors import MeasurementError, SiteMismatchError, UserInputError
from vitsense.formats import FormatLike, format_of
from vitsense.plan.budget import Budget, BudgetKind
from vitsense.plan.cost import FLOAT_BITS, Cost, cost_of, operation_bits, shape_of, weight_bits
from vitsense.plan.latency import LatencyProfile
from vitsense.plan.monotone import falling
from vitsense.plan.plan import near_names
from vitsense.plan.predict import DropModel, Prediction
from vitsense.plan.quiet import quiet_stdout
from vitsense.schemas import RATED
from vitsense.settings import Part

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

PIN_BITS = 8
"""Width of the first and the last weights unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Everything a choice depends on, for one model."""

    modules: pd.DataFrame
    """Rows of ``modules.csv``, in order."""
    divergence: Mapping[str, Mapping[str, float]]
    """Module -> format -> nats, never rising with bits over the integer formats."""
    total_params: int
    pins: Mapping[str, str] = field(default_factory=dict)
    """Module -> format."""
    ties: Sequence[Sequence[str]] = ()
    """Groups of modules that must have equal formats."""
    part: Part = Part.BOTH
    """What is quantized."""
    profile: LatencyProfile | None = None
    """For a budget of latency."""
    per_tensor: bool = False
    """Whether a weight has one scale, in place of one for each output channel."""


@dataclass(frozen=True, slots=True)
class Near:
    """Only choices that differ from a plan in at most so many modules."""

    formats: Mapping[str, str]
    changes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A format for every module, with what they cost."""

    formats: Mapping[str, str]
    cost: Cost
    prediction: Prediction

    @property
    def bits(self) -> dict[str, int]:
        """Bits of the elements of every module."""
        return {name: format_of(form).bits for name, form in self.formats.items()}


def make_problem(
    modules: pd.DataFrame,
    sensitivity: pd.DataFrame,
    total_params: int,
    *,
    pins: Mapping[str, FormatLike] | None = None,
    ties: Sequence[Sequence[str]] = (),
    part: Part = Part.BOTH,
    per_tensor: bool = False,
) -> Problem:
    """Gather the measured cells of one model into a problem.

    Args:
        modules: ``modules.csv`` of the model.
        sensitivity: ``sensitivity.csv`` of the model; only part ``both`` and rows with a divergence
            count. A bounded row counts as much as the narrower one that bounds it.
        total_params: Of the whole model.
        pins: Module -> bits or format; None pins the first and the last module with weights at 8
            bits.
        ties: Groups of modules that must have equal formats.
        part: What the plan quantizes; the rest stays in float.
        per_tensor: Whether a weight has one scale.

    Raises:
        MeasurementError: a module has no measured width.
        SiteMismatchError: a pin or tie names an unknown module.
    """
    planable = sensitivity[sensitivity["part"] == "both"]
    good = planable[planable["status"].isin(RATED)]
    names = list(modules["module"])
    seen: dict[str, dict[str, float]] = {}
    cells = (good[column].to_numpy() for column in ("module", "format", "kl"))
    for name, form, kl in zip(*cells, strict=True):
        seen.setdefault(name, {})[form] = float(kl)
    divergence = {name: _monotone(kl) for name, kl in seen.items()}
    for row in planable[planable["status"] == "bounded"].to_dict("records"):
        known = divergence.get(row["module"], {})
        narrower = [f for f in known if format_of(f).bits < row["bits"]]
        if narrower:
            known[row["format"]] = known[max(narrower, key=lambda f: format_of(f).bits)]
    missing = [name for name in names if name not in divergence]
    if missing:
        raise MeasurementError(
            f"{len(missing)} modules were not measured with weights and activations together, "
            f"first {missing[0]!r}; run vitsense analyze with --parts both."
        )
    chosen: dict[str, str] = (
        default_pins(modules, divergence)
        if pins is None
        else {name: format_of(like).name for name, like in pins.items()}
    )
    for name in [*chosen, *(n for group in ties for n in group)]:
        if name not in divergence:
            near = near_names(name, names) or " modules.csv of the run lists them."
            raise SiteMismatchError(f"The model has no module {name!r} to pin or tie.{near}")
    for name, width in chosen.items():
        if width not in divergence[name]:
            allowed = ", ".join(format_of(w).label for w in divergence[name])
            raise UserInputError(
                f"{name} cannot be pinned at {format_of(width).words}: measured are {allowed}."
            )
    return Problem(
        modules=modules.reset_index(drop=True),
        divergence=divergence,
        total_params=total_params,
        pins=chosen,
        ties=ties,
        part=part,
        per_tensor=per_tensor,
    )


def planable_cells(sensitivity: pd.DataFrame, part: Part) -> pd.DataFrame:
    """The cells of one part, under the name ``both`` that `make_problem` reads."""
    return sensitivity[sensitivity["part"] == part.value].assign(part=Part.BOTH.value)


def planable_modules(modules: pd.DataFrame, part: Part) -> pd.DataFrame:
    """The modules that have something to quantize: for weights alone, no products."""
    return modules[modules["params"] > 0] if part is Part.WEIGHTS else modules


def default_pins(
    modules: pd.DataFrame, divergence: Mapping[str, Mapping[str, float]]
) -> dict[str, str]:
    """The first and the last module with weights, at 8 bits (or the widest measured below).

    Of several formats of that many bits, the integer one, else the one of least divergence.
    """
    weighted = modules[modules["params"] > 0]["module"]
    found = {}
    for name in {weighted.iloc[0], weighted.iloc[-1]} if len(weighted) else set():
        forms = [format_of(w) for w in divergence[name] if format_of(w).bits <= PIN_BITS]
        if forms:
            kl = divergence[name]
            best = max(forms, key=lambda form: (form.bits, form.is_integer, -kl[form.name]))
            found[name] = best.name
    return found


def _monotone(kl: Mapping[str, float]) -> dict[str, float]:
    """Formats from narrow to wide, with divergence that never rises with bits of integers.

    Isotonic regression averages out sampling noise; formats of other kinds are in no order.
    """
    forms = sorted((format_of(name) for name in kl), key=lambda form: form.effective_bits)
    found = {form.name: max(kl[form.name], 0.0) for form in forms}
    integers = [form.name for form in forms if form.is_integer]
    if integers:
        smooth = falling([kl[name] for name in integers])
        found |= {name: max(v, 0.0) for name, v in zip(integers, smooth, strict=True)}
    return found


def solve(
    problem: Problem, budget: Budget, model: DropModel, near: Near | None = None
) -> Assignment:
    """The choice of least summed divergence within the budget (of least bits, for MAX_DROP).

    A module's width holds for its weight and its activations. Products have no weights and would
    be free under a budget of average bits; there, the operations-weighted mean width of the
    products must keep the same limit.

    Raises:
        UserInputError: the budget cannot be met; the least possible value is named.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    table = _Table(problem)
    limits = table.limits(budget, model)
    objective = table.kl if budget.kind is not BudgetKind.MAX_DROP else table.width
    constraints = [LinearConstraint(table.one_each, 1, 1)]
    if len(table.tied):
        constraints.append(LinearConstraint(table.tied, 0, 0))
    if near is not None:
        limits = [*limits, (table.changed(near.formats), near.changes)]
    constraints += [LinearConstraint(row[None, :], -np.inf, limit) for row, limit in limits]
    with quiet_stdout():
        found = milp(
            objective,
            integrality=np.ones(len(objective), dtype=np.int64),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:
        raise UserInputError(_infeasible(table, budget, model))
    return table.assignment(np.flatnonzero(found.x > 0.5), model)


def within(problem: Problem, budget: Budget, model: DropModel, formats: Mapping[str, str]) -> bool:
    """Whether a whole plan keeps a budget."""
    table = _Table(problem)
    chosen = 1.0 - table.changed(formats)
    return all(float(row @ chosen) <= limit for row, limit in table.limits(budget, model))


def _infeasible(table: _Table, budget: Budget, model: DropModel) -> str:
    narrow = table.assignment(table.extreme(np.argmin), model)
    wide = table.assignment(table.extreme(np.argmax), model)
    if budget.kind is BudgetKind.LATENCY_MS:
        times = table.latency()
        least_ms = sum(times[table._owner == i].min() for i in range(len(table.problem.modules)))
        least_ms += table.rest_ms
    else:
        least_ms = 0.0
    least = {
        BudgetKind.LATENCY_MS: float(least_ms),
        BudgetKind.AVG_BITS: narrow.cost.avg_bits,
        BudgetKind.SIZE_MB: narrow.cost.size_mb,
        BudgetKind.BITOPS_G: narrow.cost.bitops_g,
        BudgetKind.MAX_DROP: wide.prediction.drop,
    }[budget.kind]
    pins = bool(table.problem.pins)
    return (
        f"The budget {budget.text} cannot be met with the measured widths"
        f"{' and the pinned modules' * pins}; the least possible is {budget.kind.value}={least:.4g}"
        f". Raise it,{' unpin modules,' * pins} or measure narrower widths."
    )


class _Table:
    """One column per (module, width): the milp's arrays."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        modules = problem.modules
        self._names = list(modules["module"])
        self._choices = [
            (i, width)
            for i, name in enumerate(self._names)
            for width in problem.divergence[name]
            if problem.pins.get(name, width) == width
        ]
        forms = [format_of(width) for _, width in self._choices]
        owner = np.array([i for i, _ in self._choices])
        bits = np.array([form.effective_bits for form in forms])
        params, macs = (modules[c].to_numpy(dtype=np.float64)[owner] for c in ("params", "macs"))
        shapes = modules["weight_shape"].to_numpy()[owner]
        held = np.array(
            [weight_bits(f, int(p), s) for f, p, s in zip(forms, params, shapes, strict=True)],
            dtype=np.float64,
        )
        one = problem.per_tensor
        pairs = zip(forms, shapes, strict=True)
        scales = np.array([form.wide_scales(shape_of(shape), one) for form, shape in pairs])
        self._owner, self._bits = owner, bits
        names = sorted({form.name for form in forms})
        self._codes = np.array([1.0 + names.index(form.name) for form in forms])
        self.one_each = (owner[None, :] == np.arange(len(self._names))[:, None]).astype(float)
        self.kl = np.array([problem.divergence[self._names[i]][w] for i, w in self._choices])
        is_product = params == 0
        weights = max(float(modules["params"].sum()), 1.0)
        products = modules.loc[modules["params"] == 0, "macs"].sum()
        self._weight_bits = held / weights
        self._product_bits = is_product * macs * bits / max(float(products), 1.0)
        self.width = self._weight_bits + self._product_bits
        in_size = problem.part is not Part.ACTIVATIONS  # else weights are stored in float
        self._stored = (held + FLOAT_BITS * scales) / 8e6 * in_size
        self._bitops = macs * np.array([operation_bits(f, problem.part) for f in forms]) / 1e9
        self.tied = self._ties(problem.ties)

    def _ties(self, ties: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Rows that are zero when neighbours of a group have equal formats."""
        rows = []
        for group in ties:
            numbers = [self._names.index(name) for name in group]
            for a, b in zip(numbers, numbers[1:], strict=False):
                rows.append(self._codes * (self._owner == a) - self._codes * (self._owner == b))
        return np.array(rows) if rows else np.zeros((0, len(self._choices)))

    def changed(self, formats: Mapping[str, str]) -> NDArray[np.float64]:
        """1 for every choice that is not the module's format in a plan."""
        same = [formats[self._names[i]] == width for i, width in self._choices]
        return 1.0 - np.array(same, dtype=np.float64)

    def limits(self, budget: Budget, model: DropModel) -> list[tuple[NDArray[np.float64], float]]:
        """Rows and their upper limits."""
        slack = 1e-9
        if budget.kind is BudgetKind.AVG_BITS:
            rows = [(self._weight_bits, budget.value + slack)]
            if self._product_bits.any():
                rows.append((self._product_bits, budget.value + slack))
            return rows
        if budget.kind is BudgetKind.SIZE_MB:
            fixed = self.assignment(self.extreme(np.argmin), model)
            rest = fixed.cost.size_mb - self._stored[self.extreme(np.argmin)].sum()
            return [(self._stored, budget.value - float(rest) + slack)]
        if budget.kind is BudgetKind.BITOPS_G:
            return [(self._bitops, budget.value + slack)]
        if budget.kind is BudgetKind.LATENCY_MS:
            return [(self.latency(), budget.value - self.rest_ms + slack)]
        return [(self.kl, min(model.kl_at(budget.value), 1e6))]

    @property
    def rest_ms(self) -> float:
        """Milliseconds that no choice changes."""
        return 0.0 if self.problem.profile is None else self.problem.profile.rest_ms

    def latency(self) -> NDArray[np.float64]:
        """Milliseconds of every choice, by the problem's profile."""
        profile = self.problem.profile
        if profile is None:
            raise UserInputError(
                "A budget of latency-ms needs --profile FILE; vitsense profile measures one."
            )
        rows = self.problem.modules.to_dict("records")
        return np.array(profile.times((rows[i], width) for i, width in self._choices))

    def extreme(self, pick: np.ufunc | object) -> NDArray[np.int64]:
        """Column numbers with the narrowest (``np.argmin``) or widest (``np.argmax``) widths."""
        assert callable(pick)
        return np.array(
            [
                np.flatnonzero(self._owner == i)[pick(self._bits[self._owner == i])]
                for i in range(len(self._names))
            ]
        )

    def assignment(self, columns: NDArray[np.int64], model: DropModel) -> Assignment:
        formats = {self._names[self._choices[c][0]]: self._choices[c][1] for c in columns}
        return assignment_of(self.problem, formats, model)


def narrowest(problem: Problem, model: DropModel) -> Assignment:
    """Every module at its narrowest width (pinned ones at theirs)."""
    table = _Table(problem)
    return table.assignment(table.extreme(np.argmin), model)


def assignment_of(problem: Problem, bits: Mapping[str, FormatLike], model: DropModel) -> Assignment:
    """Cost and prediction of bits or formats that were chosen elsewhere."""
    return Assignment(
        formats={name: format_of(like).name for name, like in bits.items()},
        cost=cost_of(problem.modules, bits, problem.total_params, problem.part, problem.per_tensor),
        prediction=model.predict(summed_divergence(problem, bits)),
    )


def summed_divergence(problem: Problem, bits: Mapping[str, FormatLike]) -> float:
    """Sum over modules of the one-at-a-time divergence in their formats, nats."""
    return float(
        sum(problem.divergence[name].get(format_of(like).name, 0.0) for name, like in bits.items())
    )


def uniform(problem: Problem, width: FormatLike, *, pinned: bool = False) -> dict[str, FormatLike]:
    """Every module at ``width``; with ``pinned``, the pinned ones at theirs."""
    bits = dict.fromkeys(problem.modules["module"], width)
    return bits | dict(problem.pins) if pinned else bits


def pareto(problem: Problem, model: DropModel, points: int = 24) -> list[Assignment]:
    """Exactly solved choices from the narrowest to the widest; dominated ones are left out."""
    table = _Table(problem)
    low = table.assignment(table.extreme(np.argmin), model).cost.avg_bits
    high = table.assignment(table.extreme(np.argmax), model).cost.avg_bits
    front: list[Assignment] = []
    for value in np.linspace(low, high, points):
        try:
            found = solve(problem, Budget(BudgetKind.AVG_BITS, float(value)), model)
        except UserInputError:
            continue  # products at their narrowest may exceed the narrowest weights
        if not front or found.prediction.kl < front[-1].prediction.kl - 1e-12:
            front.append(found)
    return front
