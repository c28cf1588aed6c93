import numpy as np
import pytest

from peregrine.errors import FeedError, OptionError
from peregrine.model.inputs import parse_input
from peregrine.model.symbols import from_example, resolve
from peregrine.types import TensorSpec


def f32(name, *shape):
    return TensorSpec(name, "float32", shape)


def shapes(found):
    return {spec.name: spec.shape for spec in found.inputs}


@pytest.mark.parametrize("symbol", ["N", "batch", "batch_size", "B", "?x:0", "unk__214", "s77"])
def test_the_leading_symbol_is_the_batch_whatever_it_is_called(symbol):
    found = resolve([f32("x", symbol, 3, 8, 8)])
    assert found.batch == "batch"
    assert shapes(found) == {"x": ("batch", 3, 8, 8)}
    assert found.renames == {symbol: "batch"}


def test_a_named_batch_wins_over_a_leading_length():
    found = resolve([f32("x", "seq", "batch", 8)], dims={"seq": 5})
    assert (found.batch, found.dims) == ("batch", {"seq": 5})
    assert shapes(found) == {"x": ("seq", "batch", 8)}


def test_a_leading_length_alone_is_no_batch():
    found = resolve([f32("x", "seq_len", 8)], dims={"seq_len": 5})
    assert (found.batch, found.dims) == ("", {"seq_len": 5})


def test_recurrent_state_is_batched_in_its_middle():
    anonymous = resolve([f32("x", "?x:0", 64), f32("h", 2, "?h:1", 128)])
    assert shapes(anonymous) == {"x": ("batch", 64), "h": (2, "batch", 128)}
    assert anonymous.notes
    named = resolve([f32("x", "n", 64), f32("h", 2, "n", 128)])
    assert shapes(named) == shapes(anonymous)
    assert not named.notes


def test_anonymous_leading_dimensions_of_all_inputs_are_one_batch():
    found = resolve([f32("a", "unk__1", 3), f32("b", "unk__2", 4)])
    assert shapes(found) == {"a": ("batch", 3), "b": ("batch", 4)}


def test_equal_symbols_stay_equal_and_get_usual_names():
    found = resolve(
        [f32("x", "N", 3, "p2o.DynamicDimension.0", "p2o.DynamicDimension.1")],
        dims={"height": 48, "p2o.DynamicDimension.1": 320},
    )
    assert shapes(found) == {"x": ("batch", 3, "height", "width")}
    assert found.dims == {"height": 48, "width": 320}


def test_the_user_names_sizes_and_unifies():
    found = resolve(
        [f32("ids", "unk__1", "unk__2"), f32("mask", "unk__3", "unk__4"), f32("z", "unk__5", "q")],
        given=[
            parse_input("ids:float32:Bxlength"),
            parse_input("mask:float32:Bxlength"),
            parse_input("z:float32:Bx9"),
        ],
        dims={"length": 16},
    )
    assert shapes(found)["ids"] == shapes(found)["mask"] == ("batch", "length")
    assert found.dims == {"length": 16, "q": 9}


def test_a_size_for_the_leading_dimension_fixes_the_batch():
    found = resolve([f32("x", "N", 3)], given=[parse_input("x:float32:4x3")])
    assert (found.batch, list(found.dims.values())) == ("", [4])


def test_an_open_dimension_shows_the_flag_that_gives_it():
    with pytest.raises(OptionError) as caught:
        resolve([f32("x", "N", 3, 48, "?x:3")])
    assert "--dim width=" in caught.value.fix
    assert "--input x:float32:Bx3x48x" in caught.value.fix


def test_an_example_sizes_what_is_open():
    example = {"x": np.zeros((2, 3, 48, 100), np.float32)}
    found = resolve([f32("x", "N", 3, 48, "w")], example=example)
    assert found.dims == {"w": 100}
    with pytest.raises(FeedError):
        resolve([f32("x", "N", 3, 48, "w")], example={"x": np.zeros((2, 1, 48, 9), np.float32)})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"dims": {"wdth": 5, "w": 5}}, "no open dimension 'wdth'"),
        ({"dims": {"batch": 5, "w": 5}}, "--batch 5"),
        ({"dims": {"w": 0}}, "not a size"),
        ({"given": [parse_input("y:float32:Bx3xw")]}, "no input 'y'"),
        ({"given": [parse_input("x:float32:Bx4xw")]}, "contradicts"),
        ({"given": [parse_input("x:float64:Bx3xw")]}, "contradicts"),
        ({"given": [parse_input("x:float32:Bx3")]}, "contradicts"),
        ({"given": [parse_input("x:float32:Bx3x7")], "dims": {"w": 8}}, "given twice"),
    ],
)
def test_contradictions_are_refused(flags, said):
    with pytest.raises(OptionError, match=said):
        resolve([f32("x", "N", 3, "w")], **flags)


def test_names_that_collide_are_told_apart():
    found = resolve(
        [f32("a", "N", 3, "?a:2", "?a:3"), f32("b", "N", 3, "?b:2", "?b:3")],
        dims={"height": 1, "width": 2, "height_2": 3, "width_2": 4},
    )
    assert shapes(found)["b"] == ("batch", 3, "height_2", "width_2")


def test_outputs_follow_the_inputs_and_keep_what_is_their_own():
    found = resolve([f32("x", "N", 3)])
    renamed = found.rename(f32("out.y", "N", "unk__9", "past + 1"))
    assert renamed.shape == ("batch", "out_y_dim1", "past_1")


def test_a_shared_leading_size_of_an_example_is_the_batch():
    specs = from_example({"a": np.zeros((2, 3), np.float32), "k": np.array(1)})
    assert [str(item) for item in specs] == ["a:float32:batchx3", "k:int64:scalar"]
    apart = from_example({"a": np.zeros((2, 3)), "b": np.zeros((5, 3))})
    assert [item.spec.shape for item in apart] == [(2, 3), (5, 3)]
