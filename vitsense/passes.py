"""How many forward passes of all evaluation images the stages of a run are worth."""

from __future__ import annotations

from dataclasses import dataclass

from vitsense.analyze_explain import REMEDIED
from vitsense.formats import format_of
from vitsense.plan.additivity import RANDOM_PLANS
from vitsense.sensitivity.checked import images_to_check, narrow_cells, passes_of_an_image
from vitsense.sensitivity.draws import drawn
from vitsense.sensitivity.group_sweep import passes_of_groups
from vitsense.sensitivity.groups import groups_of
from vitsense.sensitivity.hessian import IMAGES_OF_A_PROBE
from vitsense.sensitivity.meter import CHECKED
from vitsense.sensitivity.stopping import effort
from vitsense.sensitivity.sweep import measurable
from vitsense.sensitivity.work import remaining_share, rests
from vitsense.settings import AnalyzeSettings, SweepMode
from vitsense.sites import SiteCatalog

ESTIMATES = (6.5, 8.5)
"""Of the images drawn for mode fast, in all formats; 5.0 to 8.2 were measured."""

_PROBE = (15.0, 25.0)  # of one vector of a Hessian, on its images; measured on the shipped models

_VARIANTS = (2.2, 5.0)  # for each module whose remedies are measured: itself, and its causes
_FRONT = (3.0, 5.0, 6.0)  # average bits near which a plan of the front is measured
_PROPOSALS = 5  # plans that a step of the search compares
_SEARCHED = 16  # images that exchanges are measured on at first


@dataclass(frozen=True, slots=True)
class Passes:
    """What a stage is worth, in forward passes of all evaluation images."""

    about: float
    most: float

    def __add__(self, other: Passes) -> Passes:
        """Of both."""
        return Passes(self.about + other.about, self.most + other.most)


def passes_of(
    settings: AnalyzeSettings, catalog: SiteCatalog, images: int, batch: int
) -> dict[str, Passes]:
    """The stages of one model of a run, by name; those that are left out are not in it.

    A pass counts by its multiplications, those that replay gives back not; estimates count by
    their time. What an adaptive sweep and the search for a better plan take depends on what they
    find: for them it is what they take when they stop late.

    Args:
        settings: Of the run.
        catalog: Sites of the model.
        images: Evaluation images.
        batch: Images at once.
    """
    first = min(batch, images) / images  # what is checked, is checked on the first batch
    found = {
        "statistics": _alike(settings.calibration / images),
        "single modules": _modules(settings, catalog, images, first),
        "groups": _groups(settings, catalog, first),
        "whole plans": _plans(settings),
        "search for a better plan": _search(settings, catalog, images),
        "remedies": _remedies(catalog),
    }
    if not settings.estimating:
        found["estimates"] = _beside(settings, images)
    return {name: passes for name, passes in found.items() if passes.most > 0}


def _alike(passes: float) -> Passes:
    return Passes(passes, passes)


def _fast(images: int) -> Passes:
    """A plain pass of all images, and the estimates from those drawn."""
    about, most = (1 + passes * drawn(images) / images for passes in ESTIMATES)
    return Passes(about, most)


def _checks(settings: AnalyzeSettings, catalog: SiteCatalog, images: int) -> Passes:
    """Narrow formats that mode fast measures on a few images."""
    cells = narrow_cells(catalog, settings.format_names, settings.parts)
    passes = passes_of_an_image(catalog, cells)
    return _alike(images_to_check(passes, images) * passes / images)


def _probed(settings: AnalyzeSettings, images: int) -> Passes:
    times = max(1.0, settings.probes * IMAGES_OF_A_PROBE / images)
    about, most = (passes * times for passes in _PROBE)
    return Passes(about, most)


def _beside(settings: AnalyzeSettings, images: int) -> Passes:
    """What is compared with the measurement."""
    found = _fast(images) if settings.estimates else _alike(0.0)
    return found + _probed(settings, images) if settings.probes else found


def _modules(settings: AnalyzeSettings, catalog: SiteCatalog, images: int, first: float) -> Passes:
    if settings.mode is SweepMode.FAST:
        return _fast(images) + _checks(settings, catalog, images)
    if settings.mode is SweepMode.HESSIAN:
        return _probed(settings, images)
    wanted = measurable(catalog, settings.format_names, settings.parts)
    share = rests(catalog)
    cells = sum(map(len, wanted.values()))
    whole = sum(len(some) * share[name] for name, some in wanted.items())
    checked = min(CHECKED, len(catalog)) * (1 + remaining_share(catalog)) * first
    if settings.mode is SweepMode.EXACT:
        return _alike(1 + whole + checked)
    looked = effort(cells, images) / (cells * images) if cells else 0.0
    return _alike(2 + whole * looked + checked)


def _groups(settings: AnalyzeSettings, catalog: SiteCatalog, first: float) -> Passes:
    groups = [group for by in settings.groupings for group in groups_of(catalog, by)]
    formats = settings.group_format_names
    if not groups or not formats:
        return _alike(0.0)
    each, checks = passes_of_groups(catalog, groups, formats, settings.parts, settings.directions)
    return _alike(each + checks * first)


def _plans(settings: AnalyzeSettings) -> Passes:
    """Uniform and random plans, then the choice and some of the front; a plain pass with each."""
    forms = [format_of(name).effective_bits for name in settings.format_names]
    near = [bits for bits in _FRONT if min(forms) - 0.3 < bits < max(forms) + 0.3]
    about = 1 + len(forms) + RANDOM_PLANS + 1 + 1 + len(near)
    return Passes(about, about + (1 if settings.refine else 0))


def _search(settings: AnalyzeSettings, catalog: SiteCatalog, images: int) -> Passes:
    """From two starts: the exchanges of every module, and proposals on other images."""
    most = min(settings.refine_images, settings.calibration // 2)
    if not settings.refine or not most:
        return _alike(0.0)
    sizes = sorted({min(_SEARCHED * 2**i, most) for i in range(most.bit_length())} - {0})
    formats = len(settings.format_names)
    near = 0.0 if formats < 2 else 2 - 2 / formats  # narrower and wider, of an average format
    exchanges = 3 + near * sum(rests(catalog).values())
    others = settings.calibration - most

    def passes(looked: int, steps: int) -> float:
        return 2 * (looked * exchanges + (1 + 2 * steps + _PROPOSALS * steps) * others) / images

    return Passes(
        passes(sum(sizes) + sizes[0], len(sizes) + 1),
        passes(sum(sizes[:-1]) + settings.refine * sizes[-1], len(sizes) + settings.refine),
    )


def _remedies(catalog: SiteCatalog) -> Passes:
    share, modules = remaining_share(catalog), min(REMEDIED, len(catalog))
    about, most = (1 + variants * modules * share for variants in _VARIANTS)
    return Passes(about, most)
