"""The list of files and the id it gives."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarterdeck_agent.bundle import canonical, check_files, version_id
from quarterdeck_agent.errors import InvalidInput
from quarterdeck_agent.protocol import ManifestFile

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("files", "field"),
    [
        ([], "files"),
        ([ManifestFile("a", 1, A), ManifestFile("a", 1, A)], "files[1].path"),
        ([ManifestFile("a/b", 1, A), ManifestFile("a", 1, B)], "files[0].path"),
        ([ManifestFile("../a", 1, A)], "files[0].path"),
        ([ManifestFile("/a", 1, A)], "files[0].path"),
        ([ManifestFile("a//b", 1, A)], "files[0].path"),
        ([ManifestFile("a/./b", 1, A)], "files[0].path"),
        ([ManifestFile("a\0", 1, A)], "files[0].path"),
        ([ManifestFile("a\x1b]52;c;x", 1, A)], "files[0].path"),
        ([ManifestFile("\udc80", 1, A)], "files[0].path"),
        ([ManifestFile("é" * 128, 1, A)], "files[0].path"),
        ([ManifestFile("a", -1, A)], "files[0].size"),
        ([ManifestFile("a", True, A)], "files[0].size"),
        ([ManifestFile("a", 1, A.upper())], "files[0].sha256"),
        ([ManifestFile("a", 1, A + "\n")], "files[0].sha256"),
        ([ManifestFile("a", 1, "../" + A)], "files[0].sha256"),
        ([ManifestFile("a", 1, A), ManifestFile("b", 2, A)], "files[1].size"),
    ],
)
def test_a_wrong_list_is_refused_at_its_place(files: list[ManifestFile], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_files(files)
    assert caught.value.field == field


@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "", "b.c", "\0"]), max_size=5).map("/".join))
def test_a_path_that_passes_stays_inside(path: str) -> None:
    try:
        check_files([ManifestFile(path, 1, A)])
    except InvalidInput:
        return
    pure = PurePosixPath("/root", path)
    assert pure.parts[:2] == ("/", "root") and ".." not in pure.parts and str(pure) == f"/root/{path}"


def test_the_id_does_not_depend_on_the_order_of_files_or_keys() -> None:
    files = [ManifestFile("a", 1, A), ManifestFile("b", 2, B)]
    one = canonical(files, {"name": "x", "env": {"a": "1", "b": "2"}})
    two = canonical(files[::-1], {"env": {"b": "2", "a": "1"}, "name": "x"})
    assert one == two
    assert version_id(one) == version_id(two)


def test_the_id_changes_with_any_byte_path_or_setting() -> None:
    ids = {
        version_id(canonical([ManifestFile(path, size, sha)], {"name": name}))
        for path, size, sha, name in [
            ("a", 1, A, "x"),
            ("b", 1, A, "x"),
            ("a", 2, A, "x"),
            ("a", 1, B, "x"),
            ("a", 1, A, "y"),
        ]
    }
    assert len(ids) == 5


def test_the_canonical_manifest_is_these_bytes() -> None:
    assert (
        canonical([ManifestFile("é", 1, A)], {"name": "x"})
        == ('{"config":{"name":"x"},"files":[{"path":"é","sha256":"' + A + '","size":1}],"manifest":1}').encode()
    )
