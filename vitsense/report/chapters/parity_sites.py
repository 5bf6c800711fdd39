"""Where an exported file differs from torch, site by site, and what of it is rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitsense.report.formatters import short
from vitsense.report.section import Block, Table, Words

_ROWS = 12
"""Sites that are shown; all stand in ``export.json``."""

_HEAD = ("Site", "Values", "As it runs", "Alone", "From the middle", "Torch in double")


def floor(entry: Mapping[str, Any]) -> list[Block]:
    """The file beside what double precision changes in torch; nothing where it was not needed."""
    own = entry.get("arithmetic")
    if not own:
        return []
    text = (
        "For comparison, the torch model with itself in double precision: "
        f"{own['same_top1']} of {own['images']} images get the same class, logits differ "
        f"by at most {short(own['largest'])}. Where few levels are left, the last bit of a "
        "sum decides between two of them, and a file cannot be expected to agree better."
    )
    said = own.get("conclusion")
    return [Words(text=text if said is None else f"{text} What follows: {said}.")]


def site_by_site(entry: Mapping[str, Any]) -> list[Block]:
    """The sites at which codes differ though the inputs are the same."""
    compared, sites = entry.get("compared_sites", {}), entry.get("site_differences", [])
    if "conclusion" not in compared:
        return []
    blocks: list[Block] = [
        Words(
            text=f"Each of {compared['sites']} sites computed by the file from torch's own "
            f"inputs, on {compared['images']} images: {compared['conclusion']}."
        )
    ]
    shown = [s for s in sites if s["suspicious"] or s["alone"]["differing"]]
    shown.sort(key=lambda s: (-s["suspicious"], -s["alone"]["differing"]))
    if shown:
        suspicious = sum(s["suspicious"] for s in shown)
        blocks.append(
            Table(
                title=f"{suspicious} sites differ by more than ties"
                if suspicious
                else f"{len(shown)} sites differ, all by ties",
                head=_HEAD,
                code=True,
                rows=tuple(_row(site) for site in shown[:_ROWS]),
                marked=tuple(i for i, s in enumerate(shown[:_ROWS]) if s["suspicious"]),
                reading=(
                    "Values with another code than in torch. As it runs, a site inherits what "
                    "differs before it, in brackets by up to how many steps. Alone, everything "
                    "before it is torch's, so that what differs began at this site. From the "
                    "middle: largest distance of such a value, in steps, from the middle between "
                    f"two codes; near 0 it is a tie. {min(len(shown), _ROWS)} of {len(shown)} "
                    "sites are shown; export.json has all."
                ),
            )
        )
    return blocks


def _row(site: Mapping[str, Any]) -> tuple[str, ...]:
    running, alone, double = site["as_it_runs"], site["alone"], site["double"]
    return (
        site["site"],
        f"{site['values']:,}",
        f"{running['differing']:,} ({running['steps']:.3g})",
        f"{alone['differing']:,} ({alone['steps']:.3g})",
        f"{alone['tie']:.1g}",
        f"{double['differing']:,}",
    )
