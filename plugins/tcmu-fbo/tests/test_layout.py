"""Layouts: packing and unpacking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_fbo import control, events, features, info, modes, structures
from tcmu_fbo.layout import Field, Layout, flag, word

LAYOUTS = {
    f"{module.__name__}.{name}": value
    for module in (control, events, features, info, modes, structures)
    for name, value in vars(module).items()
    if isinstance(value, Layout)
} | {f"mode page {code:02X}h": layout for code, layout in modes.PAGES.items()}


def test_a_field_stands_where_its_byte_and_high_bit_say() -> None:
    layout = Layout(4, a=Field(0, 6, 3), b=flag(1, 0), c=word(2))
    assert layout.pack(a=0b101, b=1, c=0x1234) == bytes([0b0101_0000, 1, 0x12, 0x34])


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a = 8 does not fit into 3 bits"):
        Layout(1, a=Field(0, 2, 3)).pack(a=8)


def test_what_is_missing_at_the_end_reads_as_zero() -> None:
    assert Layout(4, a=word(0), b=word(2)).unpack(b"\x01\x02\x03") == {"a": 0x0102, "b": 0x0300}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_no_two_fields_of_a_structure_overlap(name: str) -> None:
    layout = LAYOUTS[name]
    seen = 0
    for field in layout.fields:
        bits = int.from_bytes(layout.pack(**{field: (1 << layout.fields[field].bits) - 1}), "big")
        assert bits
        assert not seen & bits, field
        seen |= bits


@given(st.data())
def test_a_packed_structure_unpacks_to_the_same(data: st.DataObject) -> None:
    layout = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    values = {name: data.draw(st.integers(0, (1 << field.bits) - 1)) for name, field in layout.fields.items()}
    assert layout.unpack(layout.pack(**values)) == values
