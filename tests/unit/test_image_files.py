"""Which images and labels are found in a folder or an archive, and what is refused."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from image_sets import class_folders, flat, labelled, save, tar_of

from vitsense.errors import InputMissingError, UserInputError
from vitsense.image_files import FolderStore, Listing, TarStore, list_images


def listing(root: Path) -> Listing:
    return list_images(FolderStore(root), str(root))


def test_class_folders_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    found = listing(class_folders(tmp_path, {"dog": 1, "ant": 2, "cat": 1}))
    assert found.classes == ("ant", "cat", "dog")
    assert found.labels == (0, 0, 1, 2)
    assert found.kind == "folder"


def test_folders_named_by_class_index_keep_their_numbers(tmp_path: Path) -> None:
    """``10`` sorts before ``9``; a number must still mean itself."""
    found = listing(class_folders(tmp_path, {"9": 1, "10": 1, "207": 1}))
    assert dict(zip(found.files, found.labels, strict=True)) == {
        "9/0000.png": 9,
        "10/0001.png": 10,
        "207/0002.png": 207,
    }
    assert found.classes is None


def test_images_deep_in_a_class_folder_belong_to_the_class(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "more" / "1.png", 1)
    save(tmp_path / "dog" / "2.png", 2)
    assert listing(tmp_path).labels == (0, 1)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    found = listing(flat(tmp_path, 3))
    assert (found.kind, found.labels, found.classes) == ("flat", (-1, -1, -1), None)


def test_labels_come_from_the_table_in_its_order(tmp_path: Path) -> None:
    labelled(tmp_path, [7, 0, 999])
    found = listing(tmp_path)
    assert found.labels == (7, 0, 999)
    assert found.files == ("0000.png", "0001.png", "0002.png")
    assert found.kind == "csv"


def test_the_table_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, further columns, spaces around numbers."""
    flat(tmp_path, 2)
    text = "\ufefflabel,file,who\r\n 3,0000.png,me\r\n4 ,0001.png,you\r\n"
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-8"))
    assert listing(tmp_path).labels == (3, 4)


def test_the_table_may_name_files_of_any_suffix(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1).rename(tmp_path / "a.image")
    (tmp_path / "labels.csv").write_text("file,label\na.image,5\n", encoding="utf-8")
    assert listing(tmp_path).files == ("a.image",)


def test_images_the_table_leaves_out_are_not_used(tmp_path: Path) -> None:
    flat(tmp_path, 3)
    (tmp_path / "labels.csv").write_text("file,label\n0001.png,5\n", encoding="utf-8")
    assert listing(tmp_path).files == ("0001.png",)


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    flat(tmp_path, 1)
    save(tmp_path / "._0000.png", 1)
    save(tmp_path / ".cache" / "x.png", 2)
    assert listing(tmp_path).files == ("0000.png",)


def test_linked_class_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere = class_folders(tmp_path / "elsewhere", {"cat": 2, "dog": 1})
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for name in ("cat", "dog"):
        (chosen / name).symlink_to(elsewhere / name)
    (elsewhere / "dog" / "circle").symlink_to(elsewhere)
    assert listing(chosen).labels == (0, 0, 1)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(InputMissingError, match=r"cannot be read \(Permission denied\)"):
        FolderStore(tmp_path).names()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("file,label\n0000.png,1\ngone.png,2\n", "names 1 files that are not there.*'gone.png'"),
        ("file,label\n0000.png,cat\n", "line 2.*'cat' is not a class index"),
        ("file,label\n0000.png,-1\n", "line 2.*'-1' is not a class index"),
        ("file,label\n0000.png,1.0\n", "line 2.*'1.0' is not a class index"),
        ("file,label\n0000.png,\n", "line 2.*'' is not a class index"),
        ("file,label\n0000.png\n", "line 2.*None is not a class index"),
        ("file,label\n0000.png,1\n0000.png,2\n", "'0000.png' twice"),
        ("name,class\n0000.png,1\n", "needs the columns file and label; it has name, class"),
        ("", "needs the columns file and label; it has nothing"),
    ],
)
def test_a_wrong_table_is_refused_with_the_place(tmp_path: Path, table: str, says: str) -> None:
    flat(tmp_path, 1)
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    with pytest.raises(UserInputError, match=says):
        listing(tmp_path)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    flat(tmp_path, 1)
    (tmp_path / "labels.csv").write_bytes("file,label\nKäse.png,1\n".encode("latin-1"))
    with pytest.raises(UserInputError, match="not a CSV file in UTF-8"):
        listing(tmp_path)


def test_a_table_without_rows_names_no_images(tmp_path: Path) -> None:
    flat(tmp_path, 1)
    (tmp_path / "labels.csv").write_text("file,label\n", encoding="utf-8")
    with pytest.raises(InputMissingError, match="names no images"):
        listing(tmp_path)


def test_an_empty_folder_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing", encoding="utf-8")
    with pytest.raises(InputMissingError, match=r"holds no images \(1 other file\)"):
        listing(tmp_path)


def test_images_beside_class_folders_are_not_taken_for_unlabelled(tmp_path: Path) -> None:
    """One stray preview must not silently cost all labels."""
    class_folders(tmp_path, {"cat": 2, "dog": 2})
    save(tmp_path / "preview.png", 9)
    with pytest.raises(UserInputError, match=r"1 images beside folders with 4 more.*preview\.png"):
        listing(tmp_path)


def test_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/cat": 1, "val/cat": 1})
    with pytest.raises(UserInputError, match="holds the splits train, val, not classes"):
        listing(tmp_path)


@pytest.mark.parametrize("inside", ["", "set", "a/set", "./set"])
def test_an_archive_lists_like_its_folder(tmp_path: Path, inside: str) -> None:
    folder = class_folders(tmp_path / "set", {"cat": 2, "dog": 1})
    store = TarStore(tar_of(folder, tmp_path / "set.tar", inside=inside))
    assert list_images(store, "set.tar") == listing(folder)
    name = store.names()[-1]
    assert store.read(name) == FolderStore(folder).read(name)


def test_an_archive_of_a_labelled_folder_has_its_labels(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set", [3, 1, 2])
    store = TarStore(tar_of(folder, tmp_path / "set.tar", inside="set"))
    assert list_images(store, "set.tar").labels == (3, 1, 2)


def test_what_a_mac_adds_to_an_archive_is_ignored(tmp_path: Path) -> None:
    """``._set`` beside ``set/`` would otherwise make ``set`` look like a class."""
    folder = class_folders(tmp_path / "set", {"cat": 1, "dog": 1})
    path = tar_of(folder, tmp_path / "set.tar", inside="set")
    with tarfile.open(path, "a") as archive:
        archive.add(folder / "cat" / "0000.png", "._set")
        archive.add(folder / "cat" / "0000.png", "set/.cat/._0000.png")
    assert list_images(TarStore(path), "set.tar") == listing(folder)


def test_an_archive_is_read_in_any_order(tmp_path: Path) -> None:
    folder = flat(tmp_path / "set", 5)
    store = TarStore(tar_of(folder, tmp_path / "set.tar"))
    for name in ("0004.png", "0000.png", "0002.png", "0000.png"):
        assert store.read(name) == (folder / name).read_bytes()


def test_nothing_is_written_outside_by_an_archive_with_climbing_names(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", 1)
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(image, "../../evil.png")
        archive.add(image, "/etc/evil.png")
    before = sorted(p.name for p in tmp_path.iterdir())
    store = TarStore(path)
    assert {store.read(name) for name in store.names()} == {image.read_bytes()}
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("keep", [0.3, 0.95])
def test_an_archive_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    folder = flat(tmp_path / "set", 20)
    path = tar_of(folder, tmp_path / "set.tar")
    whole = path.read_bytes()
    used = whole.rstrip(b"\0")  # the end of a tar is padding
    path.write_bytes(whole[: int(len(used) * keep)])
    with pytest.raises(UserInputError, match="not a whole tar archive"):
        TarStore(path)


@pytest.mark.parametrize("content", [b"", b"hello, no archive", b"\0" * 100])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.tar"
    path.write_bytes(content)
    with pytest.raises(UserInputError, match=r"set\.tar is not a whole tar archive"):
        TarStore(path)


def test_a_compressed_archive_says_to_unpack_it(tmp_path: Path) -> None:
    path = tmp_path / "set.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(save(tmp_path / "a.png", 1), "a.png")
    with pytest.raises(UserInputError, match="is compressed.*unpack it"):
        TarStore(path)
