"""Images of any data set that timm's ``create_dataset`` can open."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsense.errors import InputMissingError, UserInputError
from vitsense.hub_access import offline_if_unreachable

if TYPE_CHECKING:
    from PIL.Image import Image

_INDEXED = ("hfds/", "torch/")
_STREAMED = ("hfids/", "wds/", "tfds/")
_OPTIONS = ("root", "split", "input_key", "target_key", "download")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimmImages:
    """A data set whose images are read by number."""

    labels: tuple[int, ...]
    """Known without decoding; -1 where unknown."""
    classes: tuple[str, ...] | None
    """Names in label order, where the data set states them."""
    read: Callable[[int], bytes | Image]
    """A file's bytes, or an image where the data set keeps no files."""


def is_timm_spec(spec: str) -> bool:
    """Whether ``spec`` begins like a timm data set (``hfds/``, ``wds/``, ``torch/``, ...)."""
    return spec.lower().startswith(_INDEXED + _STREAMED)


def open_timm_images(spec: str, at_most: int) -> TimmImages:
    """Open a data set by its name in timm.

    Args:
        spec: timm's name, and options of ``create_dataset`` after commas:
            ``hfds/uoft-cs/cifar10,split=test``, ``torch/cifar10,root=DIR``, ``wds/DIR``. The split
            is ``validation`` unless given.
        at_most: How many images are taken from a stream (wds, hfids, tfds): its first ones, kept
            in memory. Other data sets are read where they are.

    Raises:
        UserInputError: an option is unknown or missing.
        InputMissingError: the data set, its package or its hub cannot be reached.
    """
    name, options = _parsed(spec)
    on_a_hub = name.lower().startswith(("hfds/", "hfids/"))
    try:
        from timm.data.dataset_factory import create_dataset

        # timm prints its advice; stdout is for results
        patience = offline_if_unreachable() if on_a_hub else nullcontext()
        with patience, redirect_stdout(sys.stderr):
            data: Any = create_dataset(name, **options)
            streamed = name.lower().startswith(_STREAMED)
            found = _streamed(data, at_most) if streamed else _indexed(data)
    except Exception as error:
        # every backend raises its own types for a missing package, a missing set, no network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputMissingError(
            f"The data set {spec!r} cannot be opened ({reason[:200]}). Check its name and split "
            "(NAME,split=test chooses one), install the package its prefix needs (hfds/: datasets, "
            "wds/: webdataset), or use a folder."
        ) from error
    if not found.labels:
        raise InputMissingError(f"The data set {spec!r} has no images in this split.")
    return found


def _parsed(spec: str) -> tuple[str, dict[str, Any]]:
    name, *pairs = spec.split(",")
    options: dict[str, Any] = {"root": None, "split": "validation", "is_training": False}
    given = {key.strip(): value for key, _, value in (pair.partition("=") for pair in pairs)}
    unknown = [key for key in given if key not in _OPTIONS]
    if unknown:
        raise UserInputError(
            f"{spec!r} has the option {unknown[0]!r}; possible are {', '.join(_OPTIONS)}, as in "
            "hfds/uoft-cs/cifar10,split=test."
        )
    if "download" in given:
        options["download"] = given.pop("download").lower() in {"", "1", "true", "yes"}
    options |= given
    prefix = name.lower().partition("/")[0]
    if prefix == "torch" and options["root"] is None:
        raise UserInputError(f"{spec!r} needs the folder of its files: {name},root=DIR.")
    if prefix == "wds" and options["root"] is None:
        options |= _shards(Path(name.partition("/")[2]), given)
        name = "wds/"
    return name, options


def _shards(path: Path, given: dict[str, str]) -> dict[str, str]:
    """``wds/PATH``: a folder with an info file, a folder of shards, or one shard."""
    if path.is_file():
        return {"root": str(path.parent), "split": path.name}
    described = (path / "_info.json").is_file() or (path / "info.json").is_file()
    shards = sorted(shard.name for shard in path.glob("*.tar"))
    if "split" in given or described or not shards:
        return {"root": str(path)}
    return {"root": str(path), "split": "::".join(shards)}


def _indexed(data: Any) -> TimmImages:
    reader = getattr(data, "reader", None)
    if reader is None:  # one of torchvision's: labels stand in a list
        targets = getattr(data, "targets", None)
        labels = _numbers(data[i][1] for i in range(len(data))) if targets is None else targets
        names = getattr(data, "classes", None)

        def read_image(index: int) -> bytes | Image:
            image: Image = data[index][0]
            return image

        return TimmImages(
            labels=_numbers(labels), classes=tuple(names) if names else None, read=read_image
        )
    # the reader's files, not timm's images: timm puts the next image in the place of a broken one
    if hasattr(reader, "iter_targets"):
        labels = _numbers(reader.iter_targets())
    else:
        labels = _numbers(reader[i][1] for i in range(len(reader)))
    index_of = getattr(reader, "class_to_idx", None) or {}
    names = sorted(index_of, key=index_of.__getitem__)

    def read_file(index: int) -> bytes | Image:
        with reader[index][0] as stream:
            content: bytes = stream.read()
        return content

    return TimmImages(labels=labels, classes=tuple(names) or None, read=read_file)


def _streamed(data: Any, at_most: int) -> TimmImages:
    """The first images of a stream, kept as lossless files because a stream has no numbers."""
    files: list[bytes] = []
    targets: list[Any] = []
    for image, target in islice(data, at_most):
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        files.append(file.getvalue())
        targets.append(target)
    return TimmImages(labels=_numbers(targets), classes=None, read=files.__getitem__)


def _numbers(targets: Iterable[Any]) -> tuple[int, ...]:
    return tuple(-1 if target is None else int(target) for target in targets)
