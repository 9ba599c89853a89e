"""Large files have a digest for each 64 MiB; small ones are described as before."""

import hashlib

import pytest

from governance.files import LEAF_BYTES, sha256_file, sha256_leaves, sha256_with_leaves
from governance.manifest import Output, describe, read_manifest, verify, write_manifest
from tests.manifests import manifest_of


def sparse(path, size, marks=()):
    """A file of zeros with some bytes set."""
    with open(path, "wb") as handle:
        handle.truncate(size)
        for place in marks:
            handle.seek(place)
            handle.write(b"x")


@pytest.mark.parametrize("size", [0, 1, LEAF_BYTES - 1, LEAF_BYTES])
def test_a_file_up_to_a_piece_has_no_leaves_and_the_same_json_as_ever(tmp_path, size):
    sparse(tmp_path / "file", size)
    output = describe(tmp_path / "file", tmp_path)
    assert output.leaves == ()
    assert output.model_dump(mode="json") == {"path": "file", "bytes": size, "sha256": sha256_file(tmp_path / "file")}


@pytest.mark.parametrize("size", [LEAF_BYTES + 1, 2 * LEAF_BYTES, 2 * LEAF_BYTES + 12345])
def test_leaves_are_the_digests_of_the_pieces(tmp_path, size):
    path = tmp_path / "file"
    sparse(path, size, [3, LEAF_BYTES, size - 1])
    data = path.read_bytes()
    pieces = [data[start : start + LEAF_BYTES] for start in range(0, size, LEAF_BYTES)]
    assert sha256_leaves(path) == tuple(hashlib.sha256(piece).hexdigest() for piece in pieces)
    assert sha256_with_leaves(path) == (hashlib.sha256(data).hexdigest(), sha256_leaves(path))


def test_the_manifest_keeps_leaves_and_a_mismatch_names_the_pieces(tmp_path):
    path = tmp_path / "made" / ("0" * 16) / "file"
    path.parent.mkdir(parents=True)
    sparse(path, 3 * LEAF_BYTES + 10, [5])
    output = describe(path, tmp_path)
    manifest = manifest_of("made", (output,))
    write_manifest(manifest, tmp_path)
    assert read_manifest(path.parent / "manifest.json") == manifest
    assert verify(manifest, tmp_path) == verify(manifest, tmp_path, deep=True) == []
    sparse(path, 3 * LEAF_BYTES + 10, [5, LEAF_BYTES, 2 * LEAF_BYTES, 3 * LEAF_BYTES + 9])
    [problem] = verify(manifest, tmp_path)
    assert problem.endswith(f"; bytes {LEAF_BYTES} to {3 * LEAF_BYTES + 9} differ")
    sparse(path, 3 * LEAF_BYTES + 10, [5, 2 * LEAF_BYTES - 1])
    assert verify(manifest, tmp_path, deep=True)[0].endswith("; bytes 67108864 to 134217727 differ")
    sparse(path, 3 * LEAF_BYTES + 9, [5])
    assert "manifest states 201326602" in verify(manifest, tmp_path)[0]
    sparse(path, 3 * LEAF_BYTES + 10, [5])
    wrong = Output(path=output.path, bytes=output.bytes, sha256=output.sha256, leaves=("0" * 64, *output.leaves[1:]))
    lying = manifest.model_copy(update={"outputs": (wrong,)})
    assert verify(lying, tmp_path) == []
    assert "other leaves; bytes 0 to 67108863 differ" in verify(lying, tmp_path, deep=True)[0]
