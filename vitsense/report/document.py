"""What the report says, as plain data: the content of ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from vitsense.report.section import Section
from vitsense.report.sheet import Sheet

REPORT_SCHEMA = "vitsense.report/1"
"""Schema of ``report.json``."""


class Status(str, Enum):
    """How a number is to be taken; always shown as symbol and word, never by colour alone."""

    GOOD = "good"
    CAUTION = "caution"
    BAD = "bad"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One number that matters."""

    label: str
    value: str
    detail: str
    status: Status = Status.PLAIN
    word: str = ""
    """The status in a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """One module in one format."""

    bits: int
    label: str
    """``4`` for integers, else the name of the format."""
    text: str
    """The loss, ``-`` where it was not measured."""
    detail: str
    """The loss with its interval; or the reason why there is none."""
    nats: str
    """The divergence with its interval, nats; empty where not measured."""
    sort: float
    """Divergence, nats, to three digits; -1 where not measured."""
    level: int
    """Colour, 0 (harmless) to 20."""
    noise: bool
    """Whether the loss is not distinguishable from zero."""

    @property
    def shown(self) -> str:
        """The loss, in parentheses where it is not distinguishable from zero."""
        return f"({self.text})" if self.noise else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """One module in the table."""

    index: int
    name: str
    role: str
    block: str
    params: str
    bits: int
    label: str
    """Of its format, as in `HeatCell`; a dash without a plan."""
    pinned: bool
    reason: str
    cells: tuple[HeatCell, ...]
    sheet: Sheet
    """Its tensors and their grids."""
    more: str = ""
    """What goes on after the plan's reason: the price of more bits, and what is known since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """A whole plan: predicted against measured."""

    name: str
    bits: str
    size: str
    bitops: str
    predicted: str
    measured: str
    divergence: str
    judged: str
    """Whether it holds, in a word; a dash for plans that were only measured to learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A point of the Pareto front."""

    number: int
    """In ``pareto.csv``; ``vitsense plan --point`` takes it."""
    avg_bits: float
    size_mb: float
    bitops_g: float
    drop: float
    low: float
    high: float
    bits: tuple[int, ...]
    """In the order of the module table."""
    labels: tuple[str, ...]
    """Of the formats, in the same order."""
    measured: str
    """The loss of this very plan, where it was measured as a whole."""
    plan: str
    """Name of that measured plan; empty if it was not measured."""
    choices: str
    """One letter per module: the place of its format in `PlanWriter.formats`, from ``0``."""
    shares: str
    """One letter per module: its percent of the summed divergence, from ``0``."""
    budget: str
    cost: str
    predicted: str
    """These three as they stand in the plan's file; of cost and prediction the values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The plan in force among the points of the front, and measured plans that are not on it."""

    called: str
    """What the plan is called: ``recommended plan``; made again since the run, by its file."""
    plan: PlanRow
    place: int
    """Points of the front that have fewer bits."""
    file: str
    """Name of its file, ``plan.json``."""
    folder: str
    """The run's folder as a printed command names it."""
    command: str
    """What writes the plan of a point, up to its number."""
    aside: tuple[PlanRow, ...]
    """Measured plans that are not on the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWriter:
    """What the plan files of a front have in common, so that the page writes the same bytes."""

    parts: tuple[str, ...]
    """Text before, between and after modules, budget, cost and prediction."""
    cost: tuple[str, ...]
    predicted: tuple[str, ...]
    """Names of the values in these two parts."""
    formats: tuple[tuple[int, str | None, str | None, int], ...]
    """Bits, format of the weight, format of the activations, place of the name in ``words``."""
    words: tuple[tuple[str, str], ...]
    """Label and words of every measured format."""
    pinned: tuple[int, ...]
    """Places of modules that are pinned."""
    nats: tuple[tuple[tuple[str, int], ...], ...]
    """Per module and format: divergence as the reasons show it, and the place of the next narrower
    format, -1 if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """The plan to deploy: the smallest measured one that holds."""

    plan: str
    """Its name among the whole plans of the report."""
    file: str
    command: str
    """What writes the file; ``RUN`` is the run's folder."""
    json: str
    """The bytes of that file; empty where it is the plan file of the run itself."""
    bits: tuple[tuple[str, str], ...]
    """Its modules, and the label of the format of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """Everything about one model."""

    key: str
    name: str
    family: str
    loss: str
    """What is lost: ``drop of top-1``, or without labels ``loss of agreement``."""
    loss_unit: str
    facts: tuple[tuple[str, str], ...]
    headline: str
    """The verdict in one sentence; empty without a recommended plan."""
    verdict: tuple[str, ...]
    """What else to know at first sight."""
    cards: tuple[Card, ...]
    by_divergence: bool
    """Whether cells show the divergence, because no loss of a single module is certain."""
    estimated: bool
    """Whether divergences of single modules are estimates."""
    seen: str
    """Images that single modules saw: ``64 to 128``."""
    columns: tuple[tuple[str, int], ...]
    """Label and bits of every format, wide to narrow."""
    rows: tuple[ModuleRow, ...]
    roles: tuple[tuple[str, str], ...]
    """Roles as they are shown, and as plan files have them."""
    worst: tuple[int, ...]
    """Places in ``rows`` of the most sensitive modules, the worst first."""
    plans: tuple[PlanRow, ...]
    front: tuple[FrontPoint, ...]
    writer: PlanWriter | None
    what_if: WhatIf | None
    """What the slider shows besides the points of the front; None without a front or a plan."""
    marks: tuple[tuple[str, float, float, float, float], ...]
    """Measured plans in the Pareto figure: name, size (MB), loss, low, high."""
    coverage: tuple[tuple[str, str, str, str], ...]
    plan_json: str
    """The file of the recommended plan as it is; empty if there is none."""
    deployed: Deployed | None = None
    """None where no plan is known to hold, or its bits are not kept."""
    chapters: tuple[Section, ...] = ()
    """What `vitsense.report.chapters` has to say about the model."""
    some_measured: bool = False
    """Whether, of a table of estimates, some cells were measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPart:
    """One model in a document other than a run's: two runs compared, or a training alone."""

    key: str
    family: str
    cards: tuple[Card, ...]
    headline: str
    """The finding in plain words."""
    verdict: tuple[str, ...]
    """What else to know at first sight."""
    chapters: tuple[Section, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model's values along relative depth, for the comparison figure."""

    model: str
    family: str
    modules: tuple[str, ...]
    depth: tuple[float, ...]
    series: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The whole report."""

    title: str
    question: str
    warnings: tuple[str, ...]
    images: int
    bits: int
    """Of the format in which modules are compared."""
    at: str
    """That format in words: ``4 bits``."""
    models: tuple[ModelReport, ...]
    findings: tuple[tuple[str, str], ...]
    """What was found, and the numbers behind it; what cannot be told comes last."""
    profiles: tuple[Profile, ...]
    roles: tuple[tuple[str, ...], ...]
    """Rows of the table by role, the first being its head."""
    method: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    words: tuple[tuple[str, str], ...]
    """The report's terms and what they mean."""
    told: int = 0
    """Findings that tell something: so many from the first."""
    compared: tuple[Section, ...] = ()
    """Which model is harder, plan by plan: a table for each pair."""
    chapters: tuple[Section, ...] = ()
    """What `vitsense.report.chapters` has to say about the run."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema": REPORT_SCHEMA, **asdict(self)}
