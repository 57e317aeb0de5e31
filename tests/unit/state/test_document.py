from __future__ import annotations

import collections
import contextlib
import datetime
import enum
import importlib
import json
import math
import operator
import pathlib
import random
import struct
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spot_plugins.errors import UnsafeStateError
from spot_plugins.format.boxes import Box, ShardBoxes
from spot_plugins.format.manifest import ManifestError, canonical_json
from spot_plugins.state import decode, encode, graft, named
from spot_plugins.state.decoder import _DECODERS
from spot_plugins.state.dtypes import ARRAY_DTYPES, DTYPES, NUMPY_SCALARS
from spot_plugins.state.encoder import MAX_DEPTH
from spot_plugins.state.leaves import LEAF_DECODERS

SIGNALLING_NAN = struct.unpack(">d", bytes.fromhex("7ff4000000000001"))[0]


def round_trip(state, path=""):
    """Through real JSON and real safetensors bytes."""
    document, tensors = encode(state, path)
    stored = safetensors.torch.save({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
    return decode(json.loads(canonical_json(document)), safetensors.torch.load(stored))


def bits(tensor):
    return tensor.detach().clone().contiguous().resolve_conj().reshape(-1).view(torch.uint8).tolist()


def identity(value):
    """Something that is equal for two values exactly if they have the same types, order and bits."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, tuple(value.shape), bits(value))
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, np.generic):
        return (type(value), value.tobytes())
    if isinstance(value, float):
        return (float, struct.pack(">d", value))
    if isinstance(value, complex):
        return (complex, identity(value.real), identity(value.imag))
    if isinstance(value, dict):
        factory = getattr(value, "default_factory", None)
        return (type(value), factory, [(identity(key), identity(item)) for key, item in value.items()])
    if isinstance(value, (set, frozenset)):
        return (type(value), sorted(repr(identity(item)) for item in value))
    if isinstance(value, (list, tuple, collections.deque)):
        return (type(value), getattr(value, "maxlen", None), [identity(item) for item in value])
    return (type(value), value)


def assert_same(actual, expected):
    assert identity(actual) == identity(expected)


# What hypothesis draws ------------------------------------------------------------------------------------

texts = st.text(st.sampled_from("ab/%$_.\u00e9\ud800") | st.characters(), max_size=6)
floats = st.floats() | st.sampled_from([math.nan, -math.nan, math.inf, -math.inf, -0.0, SIGNALLING_NAN])
hashable_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**65)
    | floats
    | texts
    | st.binary(max_size=5)
    | st.complex_numbers()
    | st.timedeltas()
    | st.sampled_from([torch.float32, torch.bool, torch.Size([2, 0]), torch.device("cuda:3"), torch.device("cpu")])
    | st.sampled_from([pathlib.PurePosixPath("a/b"), pathlib.PosixPath(), pathlib.PureWindowsPath("c:\\x y")])
    | st.sampled_from([np.float32(math.nan), np.float64(-0.0), np.uint8(255), np.int64(-1), np.bool_(True)])
)
keys = texts | hashable_leaves | st.tuples(hashable_leaves, st.frozensets(texts, max_size=3))
tensors = st.sampled_from(
    [
        torch.tensor(1.5),
        torch.empty(0, 3, dtype=torch.float16),
        torch.arange(6).reshape(2, 3).t(),
        torch.tensor([True, False]),
        torch.tensor([1.0, -0.0, math.nan], dtype=torch.bfloat16),
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor([[1 + 2j], [3 - 4j]], dtype=torch.complex128).conj(),
    ]
)
arrays = st.sampled_from(
    [
        np.array(3, dtype=np.int16),
        np.zeros((2, 0), dtype=bool),
        np.arange(6.0).reshape(2, 3)[:, ::-1],
        np.array([1, 2], dtype=">u4"),
        np.array([1j, math.nan]),
        np.broadcast_to(np.float32(2), (3,)),
    ]
)


def containers(children):
    pairs = st.dictionaries(keys, children, max_size=4)
    return (
        st.lists(children, max_size=4)
        | st.lists(children, max_size=4).map(tuple)
        | st.dictionaries(texts, children, max_size=4)
        | pairs
        | pairs.map(collections.OrderedDict)
        | st.builds(collections.deque, st.lists(children, max_size=3), st.sampled_from([None, 3, 9]))
        | st.builds(collections.defaultdict, st.sampled_from([None, int, float, list, dict, set, str]), pairs)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.lists(texts).map(collections.Counter)
    )


states = st.recursive(hashable_leaves | tensors | arrays, containers, max_leaves=12)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states)
def test_any_supported_state_comes_back_with_the_same_types_order_and_bits(state):
    """
    Whatever a state is nested of, JSON and safetensors bring it back exactly.
    """
    assert_same(round_trip(state), state)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states)
def test_a_state_in_two_places_is_stored_once(state):
    """
    Each piece of memory has one name, however often it comes up.
    """
    document, tensors = encode([state, state])
    names = collections.Counter(tensor.data_ptr() for tensor in tensors.values() if tensor.numel())
    assert all(number == 1 for number in names.values())
    assert_same(decode(document, tensors), [state, state])


@pytest.mark.parametrize(
    "value",
    [
        *(10**5000, -(10**5000), 2**64, 2**64 - 1, -(2**63), -(2**63) - 1),
        *(math.nan, -math.nan, SIGNALLING_NAN, math.inf, -math.inf, -0.0, 5e-324),
        complex(-0.0, math.nan),
        "\ud800 lone surrogate",
        random.Random(0).getstate(),
        np.random.RandomState(0).get_state(),
        np.random.default_rng(0).bit_generator.state,
        np.frombuffer(bytes.fromhex("010080ff"), dtype="<f4"),
        np.frombuffer(bytes.fromhex("ff800001"), dtype=">f4"),
        np.array([[1, 2], [3, 4]], order="F", dtype=np.uint64),
        *(np.dtype(name).type(1) for name in ("int8", "uint16", "uint32", "uint64", "float16", "complex64")),
        *(np.complex128(-0.0 + 1j), np.bool_(False)),
        collections.Counter({"b": -1, "a": 0, 3: 2.5}),
        {float("nan"): 1, float("nan"): 2},
        {True: "a", None: "b", 2: "c", "2": "d", b"2": "e", (1, ("x",)): "f", 2.5: "g"},
        datetime.timedelta(days=-1, microseconds=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_awkward_values_come_back_bit_for_bit(value):
    """
    The values that JSON, numpy or casts are known to spoil are not spoiled.
    """
    assert_same(round_trip({"at": value}), {"at": value})


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex128], ids=str)
def test_every_dtype_that_is_staged_comes_back(dtype):
    """
    All bit patterns of every type that the blobs can hold survive.
    """
    tensor = torch.randint(0, 2, (48,), dtype=torch.uint8).view(torch.bool) if dtype is torch.bool else None
    if tensor is None:
        tensor = torch.randint(0, 256, (48,), dtype=torch.uint8).view(dtype)
    assert_same(round_trip({"t": tensor, "scalar": tensor[0]}), {"t": tensor, "scalar": tensor[0]})


def test_a_parameter_comes_back_as_a_detached_tensor():
    """
    Whether a parameter is trained is the host's business; the values are shared, not copied.
    """
    parameter = torch.nn.Parameter(torch.ones(2))

    _, tensors = encode({"weight": parameter})

    assert type(tensors["weight"]) is torch.Tensor
    assert not tensors["weight"].requires_grad
    assert tensors["weight"].data_ptr() == parameter.data_ptr()


# Readable documents and names -----------------------------------------------------------------------------


def test_an_ordinary_state_reads_as_it_is():
    """
    Someone who opens a manifest sees plain JSON, and tensors by their place.
    """
    state = {"epoch": 3, "best": 0.5, "model": {"encoder.weight": torch.ones(2)}, "seen": [1, "a", None, True]}

    document, tensors = encode(state, "train")

    assert document == {
        "$order": [1, 0, 2, 3],
        "epoch": 3,
        "best": 0.5,
        "model": {"encoder.weight": {"$tensor": "train/model/encoder.weight"}},
        "seen": [1, "a", None, True],
    }
    assert [*tensors] == ["train/model/encoder.weight"]


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ({"a/b": 0, "a": {"b": 0}}, ["a%2Fb", "a/b"]),
        ({"a%2Fb": 0, "a/b": 0}, ["a%252Fb", "a%2Fb"]),
        ({0: 0, "0": 0}, ["0", "0%2"]),
        ({"": {"x": 0}, "x": 0}, ["%/x", "x"]),
        ({"\ud800": 0, "\\ud800": 0, "\u00e9": 0}, ["\\ud800", "\\ud800%2", "\u00e9"]),
        ({"__metadata__": 0}, ["__metadata__%2"]),
        ({(1, "a/b"): 0, None: 0}, ['{"$tuple":[1,"a%2Fb"]}', "null"]),
        ([0, (0, {"a": 0})], ["0", "1/0", "1/1/a"]),
        (0, ["tensor"]),
    ],
    ids=repr,
)
def test_names_are_the_places_with_their_separators_escaped(state, names):
    """
    A name is the path to the tensor, unique even when keys look like paths, escapes or each other.
    """

    def fill(node):
        if isinstance(node, dict):
            return {key: fill(item) for key, item in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(fill(item) for item in node)
        return torch.rand(2)

    state = fill(state)

    _, tensors = encode(state)

    assert [*tensors] == names
    assert_same(round_trip(state), state)


@pytest.mark.parametrize(
    "state",
    [
        {"$tensor": "a"},
        {"$order": [0], "a": 1},
        {"$dict": [[1, 2]]},
        {"$unknown": 1, "a": torch.ones(1)},
        {"a": {"$float": "nan"}},
        {"$": {"$": {}}},
    ],
    ids=str,
)
def test_a_users_dict_that_looks_like_a_tag_stays_a_dict(state):
    """
    No key of the user's is ever taken for a tag of ours.
    """
    assert_same(round_trip(state), state)


# Shared memory --------------------------------------------------------------------------------------------


def test_tied_weights_are_stored_once():
    """
    A tensor in two places is one stored tensor, and one tensor object after decoding.
    """
    model = torch.nn.ModuleDict({"inp": torch.nn.Linear(3, 3), "out": torch.nn.Linear(3, 3)})
    model["out"].weight = model["inp"].weight
    state = dict(model.state_dict())
    assert state["inp.weight"] is not state["out.weight"]  # torch wraps the same memory twice

    document, tensors = encode(state)

    assert [*tensors] == ["inp.weight", "inp.bias", "out.bias"]
    assert document["out.weight"] == {"$tensor": "inp.weight"}
    restored = decode(document, tensors)
    assert restored["out.weight"] is restored["inp.weight"]


def test_views_that_only_overlap_are_stored_each():
    """
    Sharing memory is not being equal: another shape, order or type is another tensor.
    """
    base = torch.arange(4.0).reshape(2, 2)
    state = [base, base.t(), base[0], base.view(4), base.view(torch.int32), torch.empty(0), torch.empty(0)]

    _, tensors = encode(state)

    assert len(tensors) == len(state)
    assert_same(round_trip(state), state)


def test_a_conjugate_is_not_taken_for_what_it_is_a_view_of():
    """
    Torch conjugates and negates lazily: the same memory, shape and type stand for other values.
    """
    base = torch.tensor([1 + 2j, 3 - 4j])
    state = [base, base.conj(), base.imag, base.conj().imag]

    assert_same(round_trip(state), state)


# Determinism ----------------------------------------------------------------------------------------------


def test_the_same_state_gives_the_same_bytes():
    """
    Neither the history of a set nor the identity of tensors shows in the document.
    """
    forwards, backwards = set(), set()
    forwards.update(range(0, 32, 8))
    backwards.update(range(24, -8, -8))
    assert [*forwards] != [*backwards]  # else this shows nothing

    def state(numbers):
        return {"b": torch.ones(2), "a": [numbers, frozenset(numbers)], (frozenset(numbers), 1): torch.zeros(2)}

    (first, first_tensors), (second, second_tensors) = encode(state(forwards)), encode(state(backwards))

    assert canonical_json(first) == canonical_json(second)
    assert [*first_tensors] == [*second_tensors]


def test_another_order_of_keys_gives_another_document():
    """
    The order of a dict is part of the state, although canonical JSON sorts its keys.
    """
    first, _ = encode({"a": 1, "b": 2})
    second, _ = encode({"b": 2, "a": 1})

    assert canonical_json(first) != canonical_json(second)


# Refusals -------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Point(collections.namedtuple("Point", "x y")):
    pass


class Ordinary:
    pass


class MyTensor(torch.Tensor):
    pass


class Number(enum.IntEnum):
    ONE = 1


def self_containing():
    loop = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (Colour.RED, f"{__name__}.Colour"),
        (Number.ONE, f"{__name__}.Number"),
        (Point(1, 2), f"{__name__}.Point"),
        (Ordinary(), f"{__name__}.Ordinary"),
        (Ordinary, "type"),
        (len, "builtin_function_or_method"),
        (lambda: None, "function"),
        (operator.itemgetter(1), "operator.itemgetter"),
        (type("Text", (str,), {})("x"), f"{__name__}.Text"),
        (type("Table", (dict,), {})(), f"{__name__}.Table"),
        (range(3), "range"),
        (bytearray(b"x"), "bytearray"),
        (datetime.datetime(2020, 1, 1), "datetime.datetime"),
        (torch.Generator(), "torch._C.Generator"),
        (torch.ones(2).as_subclass(MyTensor), f"{__name__}.MyTensor"),
        (torch.nn.UninitializedParameter(), "torch.nn.parameter.UninitializedParameter"),
        (torch.ones(2).to_sparse(), "torch.Tensor (torch.sparse_coo)"),
        (torch.ones(2, device="meta"), "torch.Tensor (on the meta device, without data)"),
        (torch.ones(2).to(torch.float8_e4m3fnuz), "torch.Tensor (torch.float8_e4m3fnuz)"),
        (np.array([None]), "numpy.ndarray of dtype object"),
        (np.array(["a"], dtype=object), "numpy.ndarray of dtype object"),
        (np.array([1], dtype="M8[s]"), "numpy.ndarray of dtype datetime64[s]"),
        (np.zeros(1, dtype=np.longdouble), f"numpy.ndarray of dtype {np.dtype(np.longdouble)}"),
        (np.zeros(1, dtype=[("a", "f4")]), "numpy.ndarray of dtype [('a', '<f4')]"),
        (np.ma.array([1]), f"{np.ma.MaskedArray.__module__}.MaskedArray"),
        (np.str_("a"), "numpy.str_"),
        (np.random.default_rng(0), "numpy.random._generator.Generator"),
        (collections.defaultdict(Ordinary), "collections.defaultdict with the factory Ordinary"),
        (collections.defaultdict(lambda: 1), "collections.defaultdict with the factory <lambda>"),
        ({Colour.RED: 1}, f"dict with a key of type {__name__}.Colour"),
        ({(1, (Ordinary,)): 1}, "dict with a key of type type"),
        ({(1, torch.ones(1)): 1}, "dict with a key of type torch.Tensor"),
        ({len}, "set with an element of type builtin_function_or_method"),
        (frozenset({torch.ones(1)}), "frozenset with an element of type torch.Tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ",
)
@pytest.mark.parametrize(
    ("around", "path"),
    [
        (lambda value: value, "callbacks"),
        (lambda value: {"x/y": [0, ("a", value)]}, "callbacks/x%2Fy/1/1"),
        (lambda value: collections.OrderedDict(a=collections.deque([value])), "callbacks/a/0"),
        (lambda value: {3: collections.defaultdict(list, b=value)}, "callbacks/3/b"),
    ],
    ids=["top", "list", "deque", "defaultdict"],
)
def test_what_has_no_safe_form_is_refused_with_its_place(value, type_name, around, path):
    """
    Anything not known to survive is refused when saving, and the error says where and what it is.
    """
    with pytest.raises(UnsafeStateError) as caught:
        encode(around(value), "callbacks")

    assert (caught.value.path, caught.value.type_name) == (path, type_name)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_nested_and_quantized_tensors_are_refused():
    """
    They are ``torch.Tensor`` by type, and still more than a box of numbers.
    """
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)

    for tensor, kind in ((nested, "nested"), (quantized, "torch.quint8")):
        with pytest.raises(UnsafeStateError) as caught:
            encode({"a": tensor})
        assert (caught.value.path, caught.value.type_name) == ("a", f"torch.Tensor ({kind})")


def test_what_a_distributed_tensor_is_taken_for(one_rank_mesh):
    """
    A DTensor is this rank's part of a tensor that the ranks share; one of partial sums is no tensor yet.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    for placement in (Replicate(), Shard(0)):
        _, tensors = encode({"weight": DTensor.from_local(torch.ones(2), one_rank_mesh, [placement])}, "model")
        shard = tensors["model/weight"]
        assert torch.equal(shard.local, torch.ones(2))
        assert shard.boxes == ShardBoxes((2,), (Box((0,), (2,)),), (0,))
        assert isinstance(shard.like(torch.zeros(2)), DTensor)
    for dtype, placement, reason in (
        (torch.float32, Partial(), "are sums that were not reduced yet"),
        (torch.complex128, Replicate(), "complex128"),
    ):
        local = torch.ones(2, dtype=dtype)
        with pytest.raises(UnsafeStateError, match=reason) as caught:
            encode({"weight": DTensor.from_local(local, one_rank_mesh, [placement])}, "model")
        assert caught.value.path == "model/weight"


def test_a_distributed_tensor_of_other_ranks_cannot_be_saved():
    """
    This rank has no piece of it, and the ranks that have one may not share its name.
    """
    from torch.distributed.tensor import DeviceMesh, DTensor, Replicate
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        # In a shape of its own, because torch keeps the mesh of the first tensor of each shape, with its rank.
        other = DTensor.from_local(torch.ones(2, 3, 4), DeviceMesh("cpu", [0]), [Replicate()])
        with pytest.raises(UnsafeStateError, match="'model/weight' is a DTensor of which this rank is not in its mesh"):
            encode({"weight": other}, "model")
    finally:
        torch.distributed.destroy_process_group()


def test_a_distributed_tensor_that_two_dimensions_of_the_mesh_cut_unevenly_cannot_be_saved():
    """
    The elements of a rank do not lie side by side then.
    """
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        mesh = init_device_mesh("cpu", (2, 2))
        cut = DTensor.from_local(torch.ones(2), mesh, [Shard(0), Shard(0)], shape=torch.Size([6]), stride=(1,))
        told = r"dimension 0, of 6, does not divide over the \[2, 2\] ranks that share it"
        with pytest.raises(UnsafeStateError, match=told):
            encode({"weight": cut}, "model")
    finally:
        torch.distributed.destroy_process_group()


def test_the_dtypes_of_numpy_that_a_state_may_hold():
    """
    Those of torch's that numpy has too, each in both byte orders.
    """
    kinds = {"float": (16, 32, 64), "complex": (64, 128), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)}
    names = {"bool"} | {f"{kind}{size}" for kind, sizes in kinds.items() for size in sizes}

    assert {name: str(dtype) for name, dtype in NUMPY_SCALARS.items()} == {name: name for name in names}
    assert {*ARRAY_DTYPES} == {np.dtype(name).newbyteorder(order).str for name in names for order in "<>"}


def test_a_graft_brings_what_was_unheard_of_and_nothing_else():
    """
    Of another rank's document comes what holds a tensor of these names, at its place and in its order.
    """
    own, _ = encode({"state": {"z": {"step": torch.ones(1)}}, "count": 1})
    other, _ = encode({"state": {"z": 5, "b": {"step": torch.ones(1), "k": (1, 2)}, "a": [7]}, "count": 2, "more": 3})

    document = graft(own, other, {"state/b/step"})

    assert sorted(named(document)) == ["state/b/step", "state/z/step"]
    tensors = {"state/z/step": torch.tensor([1.0]), "state/b/step": torch.tensor([2.0])}
    decoded = decode(json.loads(canonical_json(document)), tensors)
    assert decoded == {"state": {"z": {"step": 1.0}, "b": {"step": 2.0, "k": (1, 2)}}, "count": 1}
    assert [*decoded["state"]] == ["z", "b"]
    assert graft(own, [], {"state/b/step"}) is own
    with pytest.raises(ManifestError, match="not an order"):
        graft({"a": 1, "$order": [1]}, other, {"state/b/step"})


def nest(depth):
    state = 1.5
    for _ in range(depth):
        state = {(1,): (state,)}
    return state


def test_state_that_contains_itself_is_refused():
    """
    A cycle ends in an error that names the place, not in a crash.
    """
    with pytest.raises(UnsafeStateError, match="list nested deeper than"):
        encode({"loop": self_containing()}, "x")


def test_nesting_is_possible_up_to_the_limit_and_refused_beyond():
    """
    Whatever is saved can also be written and read: the limit is below those of JSON and Python.
    """
    deepest = nest(MAX_DEPTH // 2)

    assert_same(round_trip(deepest), deepest)
    with pytest.raises(UnsafeStateError):
        encode([nest(MAX_DEPTH // 2), [nest(MAX_DEPTH)]])


# Documents that are not ours ------------------------------------------------------------------------------

TAGS = [*_DECODERS, *LEAF_DECODERS, "$order"]
TENSORS = {"t": torch.ones(2), "bf16": torch.ones(2, dtype=torch.bfloat16), "int": torch.ones(2, dtype=torch.int64)}


@pytest.mark.parametrize(
    "document",
    [
        *({tag: content} for tag in TAGS for content in (None, "x", 5, 1.5)),
        {"$tensor": "absent"},
        {"$tensor": "t", "b": 1},
        {"$tensor": "t", "$float": "nan"},
        {"$tensor": ["t"]},
        {"$complex128": "t"},
        {"$numpy": ["<f4", "t"]},
        {"$numpy": ["<f8", {"$tensor": "t"}]},
        {"$numpy": ["<f4", {"$tensor": "bf16"}]},
        {"$numpy": ["|O", {"$tensor": "int"}]},
        {"$numpy_scalar": ["float32", "0000"]},
        {"$numpy_scalar": ["float32", "00000000" * 2]},
        {"$numpy_scalar": ["float32", ""]},
        {"$numpy_scalar": ["object", "00" * 8]},
        {"$float": "7ff8"},
        {"$bytes": "Y*Q=="},
        {"$complex": [1.0]},
        {"$complex": [1, 2]},
        {"$set": [[1]]},
        {"$dict": [[[1], 2]]},
        {"$dict": [[1]]},
        {"$dict": ["ab"]},
        {"$ordered_dict": [["a", 1]]},
        {"$defaultdict": ["eval", {}]},
        {"$deque": [[], -1]},
        {"$deque": [[], 2**70]},
        {"$deque": ["ab", None]},
        {"$size": [1.0]},
        {"$size": [True]},
        {"$dtype": "ones"},
        {"$device": "no such device"},
        {"$device": {"$tuple": ["cpu"]}},
        {"$path": ["system", "x"]},
        {"$timedelta": [10**12, 0, 0]},
        {"$order": [0, 0], "a": 1, "b": 2},
        {"$order": [0], "a": 1, "b": 2},
        {"$order": [1, 2], "a": 1, "b": 2},
        {"$order": [0.0], "a": 1},
        {"$order": [0], "$tensor": "t"},
        {"a": {"$nonsense": 1}},
        ("a",),
        pytest.param([object()], id="an object"),
    ],
    ids=str,
)
def test_a_malformed_document_is_a_value_error(document):
    """
    Damage gives one kind of error, never a wrong state.
    """
    with pytest.raises(ManifestError):
        decode(document, TENSORS)
    assert issubclass(ManifestError, ValueError)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: {"a": inner},
        lambda inner: {"$tuple": [inner]},
        lambda inner: {"$set": [inner]},
    ],
    ids=["list", "dict", "tuple", "set"],
)
def test_a_document_nested_without_end_is_a_value_error(wrap):
    """
    Depth alone does not crash the reader, and its error stays short.
    """
    document = 0
    for _ in range(5000):
        document = wrap(document)

    with pytest.raises(ManifestError, match="nested too deeply"):
        decode(document, {})


def test_an_error_deep_inside_stays_short():
    """
    Each level passes on the error of the one below it, and does not quote it again.
    """
    document = {"$int": None}
    for _ in range(12):
        document = {"$tuple": [document]}

    with pytest.raises(ManifestError, match=r"malformed \$int") as caught:
        decode(document, {})
    assert len(str(caught.value)) < 200


def test_a_decoded_array_is_a_copy():
    """
    The tensors may lie in memory that is reused, or that must not be written.
    """
    array = decode({"$numpy": ["<f4", {"$tensor": "t"}]}, TENSORS)
    array[:] = 5

    assert TENSORS["t"].tolist() == [1, 1]


json_documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["t", "x", "float32", "<f4", "nan"]),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.sampled_from([*TAGS, "a", "b", "$x"]), children, max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_documents)
def test_any_json_is_either_a_state_or_a_value_error(document):
    """
    No document makes the reader fail in another way than the one its callers expect.
    """
    with contextlib.suppress(ManifestError):
        decode(document, TENSORS)


HOSTILE = [
    {"$path": ["os.system", "touch /tmp/owned"]},
    {"$defaultdict": ["os.system", {}]},
    {"$dtype": "hub.load"},
    {"$dtype": "__builtins__"},
    {"$numpy": ["O", {"$tensor": "int"}]},
    {"$numpy_scalar": ["object_", "00" * 8]},
    {"$object": ["antigravity", "fly"]},
    {"$reduce": ["os.system", ["true"]]},
    {"$device": "antigravity:0"},
    {"$enum": "antigravity.X"},
    {"__reduce__": ["os.system", ["true"]]},
]


def test_a_hostile_document_imports_opens_and_runs_nothing():
    """
    Names in a document are looked up in a fixed table; the interpreter sees no import, file or command for them.
    """
    events = []
    listening = True

    def listen(event, args):  # an audit hook cannot be removed again
        if listening and event.split(".")[0] in {"import", "open", "exec", "compile", "os", "subprocess"}:
            events.append((event, args[:1]))

    sys.addaudithook(listen)
    try:
        outcomes = []
        for document in HOSTILE:
            try:
                outcomes.append(decode(document, TENSORS))
            except ManifestError:
                outcomes.append("refused")
        heard_of_ours = [*events]
        importlib.import_module("__hello__")
    finally:
        listening = False

    assert heard_of_ours == []
    assert events  # the hook does hear
    # What has no tag is a user's dict, and stays one.
    assert outcomes == ["refused"] * (len(HOSTILE) - 1) + [HOSTILE[-1]]
