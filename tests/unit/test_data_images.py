"""What becomes of one image: decoded, upright, RGB, preprocessed, batched."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import class_folders, flat, labelled, pixels, save, truncated_jpeg
from PIL import Image

from vitsense.data import Draw, check_labels, decode, draw_images, open_source
from vitsense.errors import InputMissingError, UserInputError
from vitsense.preprocessing import Preprocessing

CPU = torch.device("cpu")
PLAIN = Preprocessing(
    input_size=(3, 12, 12),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    interpolation="bilinear",
    crop_pct=1.0,
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def colour(data: bytes) -> tuple[int, int, int]:
    image = decode(data)
    assert image.mode == "RGB"
    red, green, blue = image.getpixel((0, 0))
    return red, green, blue


def test_grey_images_get_three_equal_channels() -> None:
    assert colour(encoded(Image.new("L", (2, 2), 100), "PNG")) == (100, 100, 100)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (25700, 100)])
def test_sixteen_bits_are_scaled_not_clipped(value: int, expected: int) -> None:
    """Pillow's own conversion clips at 255: nearly every picture would be white."""
    image = Image.fromarray(np.full((2, 2), value, dtype=np.uint16))
    assert colour(encoded(image, "PNG")) == (expected,) * 3


def test_what_is_transparent_is_white() -> None:
    assert colour(encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 0)), "PNG")) == (255, 255, 255)
    assert colour(encoded(Image.new("RGBA", (2, 2), (9, 8, 7, 255)), "PNG")) == (9, 8, 7)
    assert colour(encoded(Image.new("LA", (2, 2), (9, 0)), "PNG")) == (255, 255, 255)


def test_palettes_are_resolved_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert colour(encoded(image, "PNG")) == (10, 20, 30)
    assert colour(encoded(image, "PNG", transparency=1)) == (255, 255, 255)


def test_bilevel_images_are_black_and_white() -> None:
    assert colour(encoded(Image.new("1", (2, 2), 1), "PNG")) == (255, 255, 255)


def test_print_colours_become_rgb() -> None:
    red, green, blue = colour(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert red > 200
    assert max(green, blue) < 60


def test_a_picture_taken_sideways_is_turned_upright() -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 270 degrees to see it
    turned = decode(encoded(image, "PNG", exif=exif.tobytes()))
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 255, 255)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colour(data) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_a_file_cut_short_is_an_error_in_every_format(kind: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    assert decode(whole).size == (40, 40)
    with pytest.raises(OSError, match="."):
        decode(whole[: int(len(whole) * keep)])


@pytest.mark.parametrize("data", [b"", b"this is text", b"\xff\xd8\xff" + b"\0" * 50])
def test_what_is_no_image_is_an_error(data: bytes) -> None:
    with pytest.raises(OSError, match="."):
        decode(data)


def test_an_image_of_absurd_size_is_an_error_not_a_crash() -> None:
    """A few bytes that claim 60,000 x 60,000 pixels."""
    size = (60_000).to_bytes(4, "big") * 2
    header = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + size + b"\x08\x02\0\0\0"
    header += zlib.crc32(header[12:]).to_bytes(4, "big")
    with pytest.raises(OSError, match="."):
        decode(header)


def test_a_text_named_jpg_and_a_truncated_jpeg_are_skipped_and_named(tmp_path: Path) -> None:
    flat(tmp_path, 6)
    (tmp_path / "notes.jpg").write_text("not an image", encoding="utf-8")
    truncated_jpeg(tmp_path / "cut.jpg")
    calibration, evaluation = draw_images(
        open_source(str(tmp_path)), Draw(evaluation=100, calibration=1)
    )
    assert sorted(calibration.skipped + evaluation.skipped) == ["cut.jpg", "notes.jpg"]
    assert len(calibration) + len(evaluation) == 6


@pytest.mark.parametrize("name", ["notes.jpg", "cut.jpg"])
def test_strict_refuses_them_by_name(tmp_path: Path, name: str) -> None:
    flat(tmp_path, 2)
    truncated_jpeg(tmp_path / name)
    if name == "notes.jpg":
        (tmp_path / name).write_text("not an image", encoding="utf-8")
    draw = Draw(evaluation=100, calibration=1, strict=True)
    with pytest.raises(UserInputError, match=f"{name} in .* cannot be read as an image"):
        draw_images(open_source(str(tmp_path)), draw)


def test_a_folder_of_broken_images_is_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        truncated_jpeg(tmp_path / name)
    with pytest.raises(
        UserInputError, match="has 3 images, of which [23] cannot be read as images"
    ):
        draw_images(open_source(str(tmp_path)), Draw(evaluation=1, calibration=1))


def test_batches_hold_the_pixels_and_labels_of_the_files_in_order(tmp_path: Path) -> None:
    source = open_source(str(labelled(tmp_path, [5, 6, 7, 8, 9])))
    _, images = draw_images(source, Draw(evaluation=100, calibration=1))
    batches = list(images.batches(PLAIN, 3, CPU))
    assert [tuple(batch.shape) for batch, _ in batches] == [(3, 3, 12, 12), (1, 3, 12, 12)]
    found = torch.cat([batch for batch, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    assert (found.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert labels.tolist() == [5 + n for n in images.numbers]
    expected = np.stack([pixels(n) for n in images.numbers]).transpose(0, 3, 1, 2)
    assert torch.equal((found * 255).round().to(torch.uint8), torch.from_numpy(expected.copy()))


def test_every_pass_gives_the_same_tensors_whatever_the_batch_size(tmp_path: Path) -> None:
    source = open_source(str(flat(tmp_path, 7)))
    _, images = draw_images(source, Draw(evaluation=100, calibration=1))
    passes = [
        torch.cat([batch for batch, _ in images.batches(PLAIN, size, CPU)]) for size in (1, 4, 4)
    ]
    assert torch.equal(passes[0], passes[1])
    assert torch.equal(passes[1], passes[2])


def test_images_without_labels_say_so(tmp_path: Path) -> None:
    source = open_source(str(flat(tmp_path / "a", 4)))
    _, images = draw_images(source, Draw(evaluation=100, calibration=1))
    assert not source.labelled
    assert not images.labelled
    labels = next(images.batches(PLAIN, 9, CPU))[1]
    assert labels.tolist() == [-1, -1, -1]


def test_labels_can_be_set_aside(tmp_path: Path) -> None:
    source = open_source(str(labelled(tmp_path, [0, 1, 2])))
    _, images = draw_images(source, Draw(evaluation=100, calibration=1))
    assert images.labelled
    blind = images.without_labels()
    assert not blind.labelled
    assert (blind.numbers, blind.digest) == (images.numbers, images.digest)


def test_a_missing_folder_says_what_data_may_be(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no folder or archive.*labels.csv"):
        open_source(str(tmp_path / "nowhere"))


def test_an_empty_folder_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="holds no images"):
        open_source(str(tmp_path))


def test_one_image_file_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="not a whole tar archive"):
        open_source(str(save(tmp_path / "a.png", 1)))


def test_a_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    source = open_source(str(labelled(tmp_path, [0, 1, 10])))
    check_labels(source, 11, "net")
    with pytest.raises(UserInputError, match="label 10, but net has 10 classes"):
        check_labels(source, 10, "net")


def test_class_folders_must_be_as_many_as_the_classes(tmp_path: Path) -> None:
    """Two folders could be any two of the thousand classes."""
    source = open_source(str(class_folders(tmp_path, {"cat": 1, "dog": 1})))
    check_labels(source, 2, "net")
    with pytest.raises(UserInputError, match=r"2 classes \(cat, dog.*net has 1000"):
        check_labels(source, 1000, "net")


def test_class_folders_named_by_index_may_be_a_part_of_the_classes(tmp_path: Path) -> None:
    source = open_source(str(class_folders(tmp_path, {"3": 1, "999": 1})))
    check_labels(source, 1000, "net")
    with pytest.raises(UserInputError, match="label 999"):
        check_labels(source, 999, "net")
