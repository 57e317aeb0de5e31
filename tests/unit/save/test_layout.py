"""The rows of each tensor that a rank stores, and the files that come out of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from steps import Holder, InlinePusher

from spot_plugins.events import EventBus
from spot_plugins.format.boxes import Box, ShardBoxes, range_boxes, whole
from spot_plugins.format.keys import StepId, blob_key, frozen_key
from spot_plugins.format.manifest import Blob, RankManifest
from spot_plugins.ranks import SingleRank
from spot_plugins.resume.plausible import covers, find_nonsense
from spot_plugins.save import Saver
from spot_plugins.save import layout as layouts
from spot_plugins.save.layout import plan_layout, signature
from spot_plugins.save.shared_buffer import SharedBuffer
from spot_plugins.save.snapshot import Snapshot
from spot_plugins.state.live_tensor import LiveTensor
from spot_plugins.state.registry import Registry

SMALL_BLOB_BYTES = 1024

dtypes = st.sampled_from(sorted(layouts.DTYPES, key=str))
shapes = st.one_of(
    st.just(()),
    st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple),
    st.tuples(st.integers(0, 200), st.integers(1, 9)),
)
kinds = st.dictionaries(
    st.text("ab/[]:0é", min_size=1, max_size=6), st.tuples(dtypes, shapes, st.booleans()), max_size=8
)
worlds = st.integers(1, 6)


@pytest.fixture(autouse=True, scope="module")
def small_blobs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "MAX_BLOB_BYTES", SMALL_BLOB_BYTES)
        patch.setattr(layouts, "EVERYWHERE_BYTES", 0)
        yield


def filled(dtype, shape, seed):
    """A tensor of random bytes, but of 0 and 1 for booleans. Many of its floats are NaNs."""
    size = prod(shape) * dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    limit = 2 if dtype is torch.bool else 256
    return torch.randint(0, limit, (size,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)


def on_all(tensor, world):
    """*tensor*, which all of *world* ranks hold."""
    shape = tuple(tensor.shape)
    return LiveTensor(tensor, ShardBoxes(shape, (whole(shape),), tuple(range(world))))


def sources_of(kinds, world):
    tensors = {name: filled(dtype, shape, seed) for seed, (name, (dtype, shape, _)) in enumerate(kinds.items())}
    return {name: on_all(tensor, world) if kinds[name][2] else LiveTensor(tensor) for name, tensor in tensors.items()}


def as_bytes(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def as_manifest(layout, rank, world):
    step_id = StepId(1, 1)
    blobs = tuple(
        Blob(key=blob_key(step_id, rank, number), num_bytes=size, xxh3_128="")
        for number, (_, size) in enumerate(layout.blobs)
    )
    return RankManifest(step_id=step_id, rank=rank, world_size=world, blobs=blobs, tensors=layout.slices, state=None)


def piece_is_all(piece):
    """Return True if *piece* is a whole tensor. Without it, the state document does not name the tensor."""
    return piece.lengths == piece.shape


def staged(sources, layout):
    """The blobs of *layout*, as bytes."""
    buffer = SharedBuffer(1, layout.num_bytes)
    try:
        Snapshot(buffer, layout, sources).issue()
        return [bytes(buffer.bytes[offset : offset + size].numpy()) for offset, size in layout.blobs]
    finally:
        buffer.close()


@given(kinds=kinds, world=worlds)
def test_the_ranks_together_store_every_row_of_a_replicated_tensor_exactly_once(kinds, world):
    """
    Nothing is missing, nothing is stored twice; what is a rank's own, that rank stores whole.
    """
    sources = sources_of(kinds, world)
    times_stored = {name: torch.zeros(source.tensor.shape, dtype=torch.int64) for name, source in sources.items()}
    seen_empty = dict.fromkeys(sources, 0)
    for rank in range(world):
        for piece in plan_layout(sources, rank).slices:
            box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.lengths, strict=True))
            assert piece.shape == tuple(sources[piece.name].tensor.shape)
            assert piece.shared == (sources[piece.name].boxes is not None)
            assert all(o + n <= extent for o, n, extent in zip(piece.offsets, piece.lengths, piece.shape, strict=True))
            times_stored[piece.name][box] += 1
            seen_empty[piece.name] += prod(piece.lengths) == 0

    for name, source in sources.items():
        expected = world if source.boxes is None else 1
        assert torch.equal(times_stored[name], torch.full_like(times_stored[name], expected)), name
        assert seen_empty[name] == (world if source.tensor.numel() == 0 else 0), name


@given(kinds=kinds, world=worlds)
def test_the_ranks_share_the_bytes_of_replicated_tensors_equally(kinds, world):
    """
    No rank stores more than its equal share and one row of the tensor where its share begins or ends.
    """
    sources = {name: on_all(source.tensor, world) for name, source in sources_of(kinds, world).items()}
    total = sum(source.tensor.nbytes for source in sources.values())
    longest_row = max(
        (s.tensor.nbytes // max(len(s.tensor) if s.tensor.ndim else 1, 1) for s in sources.values()), default=0
    )

    for rank in range(world):
        stored = sum(piece.stop - piece.start for piece in plan_layout(sources, rank).slices)
        assert abs(stored - total / world) <= max(longest_row, 1)


@given(kinds=kinds, world=worlds)
def test_slices_are_aligned_and_blobs_are_small(kinds, world):
    """
    Each slice begins at a multiple of its item size, each image at a page, and no blob is over the limit unless a
    single row is.
    """
    sources = sources_of(kinds, world)
    for rank in range(world):
        layout = plan_layout(sources, rank)
        in_blob = [[piece for piece in layout.slices if piece.blob == index] for index in range(len(layout.blobs))]
        for (offset, size), header, pieces in zip(layout.blobs, layout.headers, in_blob, strict=True):
            assert offset % layouts.BLOB_ALIGNMENT == 0
            assert len(header) % layouts.DATA_ALIGNMENT == 0
            assert size <= SMALL_BLOB_BYTES or [piece.lengths[:1] for piece in pieces] in ([()], [(1,)])
            for piece in pieces:
                itemsize = sources[piece.name].tensor.element_size()
                assert piece.start % itemsize == 0
                assert len(header) <= piece.start <= piece.stop <= size
                assert piece.stop - piece.start == prod(piece.lengths) * itemsize
        ends = [0, *(offset + size for offset, size in layout.blobs)]
        assert all(start >= end for (start, _), end in zip(layout.blobs, ends, strict=False))
        assert layout.num_bytes == max(ends[-1], 1)


@given(kinds=kinds, world=worlds, grows=st.booleans())
def test_tensors_of_a_ranks_own_can_be_apart_so_that_others_know_the_blobs_before_them(kinds, world, grows):
    """
    The first blobs are then those of any rank that holds the shared tensors, byte for byte, and no blob has both kinds.
    The slices are the same in every layout.
    """
    sources = sources_of(kinds, world)
    shared = {name: source for name, source in sources.items() if source.boxes is not None}
    for rank in range(world):
        apart = plan_layout(sources, rank, grows=grows, own_apart=True)
        others = plan_layout(shared, rank, grows=grows)
        num_shared = len(others.blobs)
        assert (apart.blobs[:num_shared], apart.headers[:num_shared]) == (others.blobs, others.headers)
        assert apart.slices[: len(others.slices)] == others.slices
        assert {(each.blob < num_shared, each.shared) for each in apart.slices} <= {(True, True), (False, False)}
        assert staged(sources, apart)[:num_shared] == staged(shared, others)
        mixed = plan_layout(sources, rank, grows=grows)
        assert sorted(map(box_of, apart.slices)) == sorted(map(box_of, mixed.slices))


def box_of(piece):
    return piece.name, piece.offsets, piece.lengths


small_shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@given(shape=small_shapes, data=st.data())
def test_the_boxes_of_a_range_are_the_range(shape, data):
    """
    Wherever a run of elements begins and ends: its boxes hold these elements, in this order, and nothing else.
    """
    total = prod(shape)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))

    boxes = range_boxes(shape, start, stop)

    numbers = torch.arange(total).view(shape)
    inside = [numbers[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))].reshape(-1) for box in boxes]
    assert torch.equal(torch.cat([torch.empty(0, dtype=torch.int64), *inside]), torch.arange(start, stop))
    assert len(boxes) <= max(2 * len(shape) - 1, 1)


@given(shape=small_shapes, data=st.data())
def test_runs_that_ranks_hold_are_stored_where_they_are_and_make_the_whole(shape, data):
    """
    A tensor that is cut anywhere into runs of elements, each held by one rank or by two: what is stored is the
    tensor, every element once; and each rank stores only what it holds.
    """
    tensor = filled(torch.float32, shape, 1)
    cuts = data.draw(st.lists(st.integers(0, prod(shape)), min_size=1, max_size=3).map(sorted))
    edges = [0, *cuts, prod(shape)]
    stored = torch.zeros(shape, dtype=torch.int64)
    copied = torch.zeros(shape)
    for number, (start, stop) in enumerate(pairwise(edges)):
        holders = data.draw(st.sampled_from([(2 * number,), (2 * number, 2 * number + 1)]))
        held = tensor.reshape(-1)[start:stop].clone()
        source = LiveTensor(held, ShardBoxes(shape, range_boxes(shape, start, stop), holders))
        for rank in holders:
            layout = plan_layout({"w": source}, rank)
            blobs = staged({"w": source}, layout)
            for piece in layout.slices:
                box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.lengths, strict=True))
                stored[box] += 1
                values = bytearray(blobs[piece.blob][piece.start : piece.stop])
                if values:
                    copied[box] = torch.frombuffer(values, dtype=torch.float32).view(piece.lengths)

    assert torch.equal(stored, torch.ones_like(stored))
    assert as_bytes(copied) == as_bytes(tensor)


@given(kinds=kinds, world=worlds)
def test_every_blob_is_a_safetensors_file(kinds, world):
    """
    The public safetensors package reads each blob on its own, and finds the very bits of each slice, also of tensors
    that are split over blobs, of scalars, of empty ones and of all types.
    """
    sources = sources_of(kinds, world)
    for rank in range(world):
        layout = plan_layout(sources, rank)
        blobs = staged(sources, layout)
        read = [safetensors.deserialize(blob) for blob in blobs]
        for index, entries in enumerate(read):
            pieces = [piece for piece in layout.slices if piece.blob == index]
            assert len(entries) == len(pieces)
            by_name = dict(entries)
            for piece in pieces:
                rows = piece.offsets[0] if piece.offsets else 0, piece.lengths[0] if piece.lengths else 1
                is_whole = piece.lengths == piece.shape
                place = ",".join(f"{o}:{o + n}" for o, n in zip(piece.offsets, piece.lengths, strict=True))
                name = piece.name if is_whole else f"{piece.name}[{place}]"
                tensor = sources[piece.name].tensor
                expected = as_bytes(tensor if is_whole else tensor[rows[0] : sum(rows)])
                assert bytes(by_name[name]["data"]) == expected
                assert tuple(by_name[name]["shape"]) == piece.lengths
                assert by_name[name]["dtype"] == piece.dtype
                assert blobs[index][piece.start : piece.stop] == expected


@given(kinds=kinds, world=worlds, data=st.data())
def test_a_reader_sees_when_a_slice_is_missing_or_there_twice(kinds, world, data):
    """
    What was planned makes sense to a reader; with any slice left out, doubled or moved by a row it does not.
    """
    sources = {name: on_all(source.tensor, world) for name, source in sources_of(kinds, world).items()}
    manifests = [as_manifest(plan_layout(sources, rank), rank, world) for rank in range(world)]
    pieces = [(manifest, piece) for manifest in manifests for piece in manifest.tensors]
    assert find_nonsense(pieces) is None

    full = [number for number, (_, piece) in enumerate(pieces) if piece.stop > piece.start]
    if full:
        number = data.draw(st.sampled_from(full))
        manifest, piece = pieces[number]
        assert find_nonsense([*pieces[:number], *pieces[number + 1 :]]) is not None or piece_is_all(piece)
        assert find_nonsense([*pieces, pieces[number]]) is not None
        if piece.offsets:
            moved = replace(piece, offsets=(piece.offsets[0] + 1, *piece.offsets[1:]))
            assert find_nonsense([*pieces[:number], (manifest, moved), *pieces[number + 1 :]]) is not None


def test_boxes_that_only_touch_do_not_overlap():
    """
    Four quarters of a matrix are the matrix; with one of them moved by a column they are not.
    """
    layout = plan_layout({"w": LiveTensor(torch.zeros(2, 2))}, 0)
    (matrix,) = layout.slices
    quarter = replace(matrix, shape=(4, 4), lengths=(2, 2), shared=True)
    corners = [(0, 0), (0, 2), (2, 0), (2, 2)]

    for wrong in (None, (0, 1), (1, 2), (1, 1)):
        offsets = corners if wrong is None else [*corners[:3], wrong]
        # One rank each, because slices of one rank lie in different bytes.
        found = find_nonsense(
            (as_manifest(layout, rank, 4), replace(quarter, offsets=offset)) for rank, offset in enumerate(offsets)
        )
        assert found == (None if wrong is None else "not all of 'w' is there")


@pytest.mark.parametrize(
    "changes", [{"dtype": "I32"}, {"shape": (4, 4, 1), "offsets": (2, 2, 0), "lengths": (2, 2, 1)}]
)
def test_parts_of_different_tensors_are_no_tensor(changes):
    """
    Two ranks that disagree about the type or the shape of a tensor did not store the same one.
    """
    layout = plan_layout({"w": LiveTensor(torch.zeros(2, 2))}, 0)
    parts = [
        replace(layout.slices[0], shape=(4, 4), offsets=offsets, lengths=(2, 2), shared=True)
        for offsets in [(0, 0), (0, 2), (2, 0), (2, 2)]
    ]
    parts[3] = replace(parts[3], **changes)

    found = find_nonsense((as_manifest(layout, rank, 4), part) for rank, part in enumerate(parts))
    assert found == "the slices of 'w' are of different tensors"


def test_ranks_that_differ_about_a_tensor_or_a_blob_are_no_checkpoint():
    """
    One says that a tensor is shared and another that it has one of its own; or both name a frozen blob, in two sizes.
    """
    layout = plan_layout({"w": LiveTensor(torch.zeros(2, 2))}, 0)
    first, second = as_manifest(layout, 0, 2), as_manifest(layout, 1, 2)
    (own,) = layout.slices
    frozen = replace(first.blobs[0], key=frozen_key("0" * 32))
    longer = replace(frozen, num_bytes=frozen.num_bytes + 8)

    found = find_nonsense([(first, replace(own, shared=True)), (second, own)])
    assert found == "'w' is both shared and a rank's own"
    found = find_nonsense([(replace(first, blobs=(frozen,)), own), (replace(second, blobs=(longer,)), own)])
    assert found.endswith(".safetensors' has two sizes or hashes")
    assert find_nonsense([(replace(each, blobs=(frozen,)), own) for each in (first, second)]) is None


def test_slices_that_share_bytes_are_no_checkpoint():
    """
    A small blob could name any number of large tensors, and each would take memory.
    """
    layout = plan_layout({"w": LiveTensor(torch.zeros(2, 2)), "v": LiveTensor(torch.zeros(2, 2))}, 0)
    manifest = as_manifest(layout, 0, 1)
    first, second = layout.slices
    shifted = replace(second, start=first.start + 4, stop=first.stop + 4)

    assert find_nonsense([(manifest, first), (manifest, second)]) is None
    assert "share bytes of one blob" in find_nonsense([(manifest, first), (manifest, shifted)])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_thousands_of_boxes_take_no_longer_than_their_number(dims):
    """
    Boxes that all overlap are found out without comparing each with each.
    """
    layout = plan_layout({"w": LiveTensor(torch.zeros(2, 2))}, 0)
    shape = (20_004,) * dims
    lengths = (4,) + (1,) * (dims - 1)
    pieces = [
        (
            as_manifest(layout, number, 20_000),
            replace(layout.slices[0], shape=shape, offsets=(number,) * dims, lengths=lengths, shared=True),
        )
        for number in range(20_000)
    ]

    assert find_nonsense(pieces) == "not all of 'w' is there"


@given(data=st.data())
def test_boxes_cover_a_tensor_as_counting_its_elements_says(data):
    """
    Random boxes in one to three dimensions, of which some are the tensor cut up: each element is in exactly one box.
    """
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    boxes = [whole(shape)]
    for _ in range(data.draw(st.integers(0, 4))):  # cut one of the boxes in two
        if shape:
            box = boxes.pop(data.draw(st.integers(0, len(boxes) - 1)))
            dim = data.draw(st.integers(0, len(shape) - 1))
            at = data.draw(st.integers(0, box.lengths[dim]))
            for first, n in ((0, at), (at, box.lengths[dim] - at)):
                offsets, lengths = [*box.offsets], [*box.lengths]
                offsets[dim], lengths[dim] = box.offsets[dim] + first, n
                boxes.append(Box(tuple(offsets), tuple(lengths)))
    if data.draw(st.booleans()):  # and spoil one
        box = boxes.pop(data.draw(st.integers(0, len(boxes) - 1)))
        changed = [tuple(max(0, n + data.draw(st.integers(-1, 1))) for n in each) for each in box]
        boxes += data.draw(st.sampled_from([[], [box, box], [Box(*changed)]]))
    times = np.zeros(tuple(2 * n + 2 for n in shape), int)
    for box in boxes:
        times[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))] += 1

    inside = tuple(slice(0, n) for n in shape)
    assert covers(boxes, whole(shape)) == bool((times[inside] == 1).all() and times.sum() == prod(shape))


def test_safetensors_gives_the_tensors_back():
    """
    What a person gets who has only the safetensors package and torch: tensors of the right types and values.
    """
    tensors = {
        "bf16": torch.randn(3, 4).to(torch.bfloat16),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "strided": torch.arange(12).view(3, 4).T,
    }
    sources = {name: LiveTensor(tensor) for name, tensor in tensors.items()}

    (blob,) = staged(sources, plan_layout(sources, 0))
    read = safetensors.torch.load(blob)

    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_blob_with_its_header_stays_within_the_limit():
    """
    The header counts: a tensor that alone would just fill a blob is cut.
    """
    sources = {"w": LiveTensor(torch.zeros(SMALL_BLOB_BYTES // 16, 4))}

    assert all(size <= SMALL_BLOB_BYTES for _, size in plan_layout(sources, 0).blobs)


@given(kinds=kinds, world=worlds, data=st.data())
def test_the_signature_changes_when_the_layout_does(kinds, world, data):
    """
    Equal signatures mean equal layouts, whatever the values; so a layout may be cached by its signature.
    """
    other_kinds = dict(kinds)
    if kinds:
        name = data.draw(st.sampled_from(sorted(kinds)))
        changed = data.draw(st.tuples(dtypes, shapes, st.just(not kinds[name][2])))
        field = data.draw(st.integers(0, 2))
        other_kinds[name] = (*kinds[name][:field], changed[field], *kinds[name][field + 1 :])
    one, other = sources_of(kinds, world), sources_of(other_kinds, world)

    same = all(plan_layout(one, rank) == plan_layout(other, rank) for rank in range(world))

    assert signature(one) == signature(sources_of(dict(kinds), world))
    if not same:
        assert signature(one) != signature(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"w": torch.zeros(3, 2)},
        lambda state: state | {"w": torch.zeros(2, 3, dtype=torch.float64)},
        lambda state: state | {"v": torch.zeros(1)},
        lambda state: {},
    ],
    ids=["shape", "dtype", "another tensor", "no tensor"],
)
def test_the_saver_plans_once_and_again_when_the_state_changes(change):
    """
    Saves of the same structure share one layout object; a changed one gets a layout of its own.
    """
    holder = Holder({"w": torch.zeros(2, 3), "step": 0})
    parts = Registry()
    parts.add("part", holder)
    saver = Saver(parts, SingleRank(), InlinePusher(None, None), EventBus())

    first = saver.stage(1, "explicit", deadline=0.0).blobs[0].layout
    holder.state = {"w": torch.ones(2, 3), "step": 1}
    same = saver.stage(2, "explicit", deadline=0.0).blobs[0].layout
    holder.state = change(holder.state)
    other = saver.stage(3, "explicit", deadline=0.0)
    saver.close()

    assert same is first
    assert other.blobs[0].layout != first
    document, sources = parts.capture(1)
    assert other.blobs[0].layout == plan_layout(sources, 0)
    assert other.state == document


def test_a_buffer_is_used_again_and_its_bytes_are_the_new_ones():
    """
    The second save goes into the memory of the first, without a rest of it.
    """
    holder = Holder({"w": torch.full((100,), 1.0)})
    parts = Registry()
    parts.add("part", holder)
    saver = Saver(parts, SingleRank(), InlinePusher(None, None), EventBus())

    first = saver.stage(1, "explicit", deadline=0.0)
    holder.state = {"w": torch.full((100,), 2.0)}
    second = saver.stage(2, "explicit", deadline=0.0)

    assert second.blobs[0].buffer is first.blobs[0].buffer
    offset, size = second.blobs[0].layout.blobs[0]
    image = bytes(second.blobs[0].buffer.bytes[offset : offset + size].numpy())
    assert torch.equal(safetensors.torch.load(image)["part/w"], torch.full((100,), 2.0))
    saver.close()
