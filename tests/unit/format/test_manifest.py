"""The bytes of a manifest: canonical, and never believed when damaged."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from spot_plugins.format import manifest
from spot_plugins.format.keys import StepId, blob_key, frozen_key
from spot_plugins.format.manifest import (
    MAX_MANIFEST_BYTES,
    Blob,
    ManifestError,
    NewerFormatError,
    RankManifest,
    TensorSlice,
    canonical_json,
)

STEP = StepId(1200, 7)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def a_manifest(state=None):
    return (
        RankManifest(
            step_id=STEP,
            rank=3,
            world_size=8,
            blobs=(Blob(key=blob_key(STEP, 3, 0), num_bytes=192, xxh3_128="0f" * 16),),
            tensors=(
                TensorSlice(
                    name="model/wéight",
                    dtype="F32",
                    shape=(4, 2),
                    offsets=(1, 0),
                    lengths=(2, 2),
                    shared=True,
                    blob=0,
                    start=128,
                    stop=144,
                ),
            ),
            state={"epoch": 3, "none": None},
        )
        if state is None
        else replace(a_manifest(), state=state)
    )


def test_a_manifest_that_no_reader_would_accept_is_not_written(monkeypatch):
    """
    The training is told before a step is lost.
    """
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 100)
    told = r"has \d+ bytes and about \d+ values, and a reader accepts 100 and \d+: return tensors from state_dict\(\)"
    with pytest.raises(ManifestError, match=told + " instead of long lists of numbers"):
        a_manifest().encode()


def signed(document):
    """*document* with a hash of itself, as somebody would write it who knows the format."""
    body = {key: value for key, value in document.items() if key != "xxh3_128"}
    return canonical_json({**body, "xxh3_128": xxhash.xxh3_128_hexdigest(canonical_json(body))})


@given(state=json_values)
def test_what_was_encoded_comes_back(state):
    """
    All fields survive, whatever JSON the state is, and equal manifests have equal bytes.
    """
    manifest = a_manifest({"state": state})

    data = manifest.encode()

    assert RankManifest.decode(data) == manifest
    assert data == a_manifest({"state": json.loads(json.dumps(state))}).encode()


def test_the_bytes_are_canonical_and_hold_nothing_of_time_or_place():
    """
    Sorted keys, no spaces, one newline at the end; the fields are those of format 1 and no others.
    """
    data = a_manifest().encode()
    document = json.loads(data)

    assert data == json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    assert data == canonical_json(document)
    assert set(document) == {"format", "step", "attempt", "rank", "world_size", "blobs", "tensors", "state", "xxh3_128"}
    assert document["format"] == 1


def test_any_flipped_bit_is_seen():
    """
    Whichever bit flips, even in the format number or in the hash, the manifest is refused as damaged, and not taken for
    one of newer software; or it means what it meant.
    """
    data = a_manifest().encode()
    for index in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[index // 8] ^= 1 << index % 8
        try:
            manifest = RankManifest.decode(bytes(damaged))
        except NewerFormatError:
            pytest.fail(f"bit {index} makes it newer: {bytes(damaged)[:40]}")
        except ManifestError:
            continue
        assert manifest == a_manifest(), index


def test_any_shorter_manifest_is_seen():
    """
    A manifest that was cut off is refused, wherever it was cut; only the newline at the end is not needed.
    """
    data = a_manifest().encode()
    for length in range(len(data) - 1):
        with pytest.raises(ManifestError):
            RankManifest.decode(data[:length])


def test_a_newer_format_is_told_apart_from_damage():
    """
    An intact manifest of a later format says that the software must be upgraded, also when its fields are other ones
    and when it has no hash of the kind known here.
    """
    document = json.loads(a_manifest().encode())
    for newer in (
        signed({**document, "format": 2}),
        signed({"format": 2, "something": "else"}),
        canonical_json({"format": 3, "signature": "of another kind"}),
    ):
        with pytest.raises(NewerFormatError, match=r"format [23] is newer than 1.*upgrade spot_plugins"):
            RankManifest.decode(newer)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null\n",
        b"[]",
        b"{}",
        b"\x80\x04K\x01.",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": NaN}',
        b'{"format": "2"}',
        b"1" * 5000,
        signed({"format": 0}),
        signed({"format": True}),
        signed({"format": 1}),
        signed(
            {"format": 1, "step": 1, "attempt": 1, "rank": 0, "world_size": 1, "blobs": 7, "tensors": [], "state": 0}
        ),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_manifest_is_refused(data):
    """
    Whatever bytes lie at a manifest's key, reading them ends with a ManifestError, which is a ValueError.
    """
    with pytest.raises(ManifestError) as caught:
        RankManifest.decode(data)

    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, NewerFormatError)


@pytest.mark.parametrize("version", [0, -1, True, 1.5, "1", None])
def test_what_says_it_is_of_no_known_format_is_refused(version):
    """
    All else may be right, its hash too: only format 1 is read.
    """
    with pytest.raises(ManifestError):
        RankManifest.decode(signed({**json.loads(a_manifest().encode()), "format": version}))


def test_a_manifest_without_a_hash_is_refused():
    """
    Leaving the hash out is no way around it.
    """
    document = json.loads(a_manifest().encode())
    del document["xxh3_128"]

    with pytest.raises(ManifestError, match="the manifest has no hash of itself"):
        RankManifest.decode(canonical_json(document))


@pytest.mark.parametrize("item", [b"[],", b"{},", b"0,"], ids=repr)
def test_a_manifest_of_more_values_than_a_reader_accepts_takes_no_memory(item):
    """
    Millions of empty lists are 60 MB of JSON and a gigabyte of memory. They are counted before they are read.
    """
    count = MAX_MANIFEST_BYTES // len(item) - 1

    with pytest.raises(ManifestError, match="are no manifest, because it is too long or has too many values"):
        RankManifest.decode(b"[" + item * count + b"0]")


def test_a_state_of_more_values_than_a_reader_accepts_is_not_written(monkeypatch):
    """
    The save is refused with the remedy, not the resume.
    """
    monkeypatch.setattr(manifest, "MAX_MANIFEST_VALUES", 1000)
    with pytest.raises(ManifestError, match=r"values, and a reader accepts .* and 1000: return tensors"):
        a_manifest([0] * 1000).encode()


@pytest.mark.parametrize(
    "key", ["../up", "attempts/000009.json", blob_key(STEP, 2, 0), frozen_key("0f" * 15), "frozen/"]
)
def test_a_blob_that_this_rank_cannot_have_stored_is_refused(key):
    """
    A blob lies below its step with the number of its rank, or is named by its hash.
    """
    (blob,) = a_manifest().blobs
    forged = replace(a_manifest(), blobs=(replace(blob, key=key),)).encode()

    with pytest.raises(ManifestError, match="is no blob of this step and rank"):
        RankManifest.decode(forged)
    frozen = replace(a_manifest(), blobs=(replace(blob, key=frozen_key(blob.xxh3_128)),))
    assert RankManifest.decode(frozen.encode()) == frozen


@pytest.mark.parametrize("field", ["step", "attempt", "rank", "world_size"])
def test_a_number_of_another_type_is_refused(field):
    """
    3.0 equals 3 and names another object.
    """
    document = json.loads(a_manifest().encode())

    with pytest.raises(ManifestError, match="the step, the attempt or the rank is no whole number"):
        RankManifest.decode(signed({**document, field: float(document[field])}))


def test_a_number_that_json_does_not_know_is_no_part_of_a_manifest():
    """
    NaN is written by no other JSON writer and read by few: it never gets into a manifest.
    """
    with pytest.raises(ValueError, match="JSON"):
        a_manifest({"loss": float("nan")}).encode()


def test_a_manifest_with_other_content_than_it_was_written_with_is_refused():
    """
    One number is another one, and the hash is that of before.
    """
    document = {**json.loads(a_manifest().encode()), "rank": 4}

    with pytest.raises(ManifestError, match="the content of the manifest does not match its hash"):
        RankManifest.decode(canonical_json(document))


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_a_constant_that_json_does_not_know_is_refused(constant):
    """
    The hash is that of the bytes.
    """
    body, _, _ = a_manifest().encode().rpartition(b',"xxh3_128":')
    body = body.replace(b'"none":null', b'"none":' + constant)
    data = body + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(body + b"}\n").encode() + b'"}\n'

    with pytest.raises(ManifestError, match="is no JSON"):
        RankManifest.decode(data)


def test_a_manifest_in_another_form_is_read():
    """
    The hash is that of the canonical form, so indented JSON with the same content is the same manifest.
    """
    document = json.loads(a_manifest().encode())

    assert RankManifest.decode(json.dumps(document, indent=1).encode()) == a_manifest()
