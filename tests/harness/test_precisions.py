"""Precisions as a user names them."""

import pytest

from peregrine.errors import OptionError
from peregrine.harness.precisions import resolve, worth_racing
from peregrine.types import Precision as P


@pytest.mark.parametrize(
    ("device", "flags", "expected"),
    [
        ("cpu", (), (P.FP32, P.INT8)),
        ("cpu", ("avx512_vnni", "avx512_fp16"), (P.FP32, P.INT8)),
        ("cpu", ("avx512_bf16",), (P.FP32, P.BF16, P.INT8)),
        ("cpu", ("avx2", "amx_bf16"), (P.FP32, P.BF16, P.INT8)),
        ("cuda:0", (), (P.FP32, P.TF32, P.FP16, P.BF16, P.FP8, P.INT8)),
    ],
)
def test_auto_is_what_the_device_computes_in(device, flags, expected):
    assert worth_racing(device, flags) == expected
    for said in ("auto", ("auto",), [" auto "]):
        assert resolve(said, device, flags) == expected


def test_names_in_any_form_come_once_in_the_order_given():
    for said in ("int8, fp32,int8", ("int8", "fp32"), [P.INT8, P.FP32]):
        assert resolve(said, "cpu", ()) == (P.INT8, P.FP32)


@pytest.mark.parametrize("said", ["", (), "fp31", "auto,fp32", ["fp32", "int4"]])
def test_other_words_are_answered_with_those_there_are(said):
    with pytest.raises(OptionError) as caught:
        resolve(said, "cpu", ())
    assert "int8" in caught.value.fix
