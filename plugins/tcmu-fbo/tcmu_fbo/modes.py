"""Mode pages of an optical drive : layouts, defaults, and what may be changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tcmu_core import InvalidFieldInCdb, InvalidFieldInParameterList, ParameterListLengthError, SavingNotSupported
from tcmu_fbo.layout import Field, Layout, flag, long, word

ALL_PAGES = 0x3F
CHANGEABLE, SAVED = 1, 3  # page control (SPC-4 6.13.1): 0 current, 1 changeable, 2 default, 3 saved

ERROR_RECOVERY = 0x01
CACHING = 0x08
CONTROL = 0x0A
POWER_CONDITION = 0x1A
TIMEOUT_AND_PROTECT = 0x1D
CAPABILITIES = 0x2A

_HEAD = {"page_code": Field(0, 5, 6), "page_length": Field(1)}

HEADER_6 = Layout(4, mode_data_length=Field(0), medium_type=Field(1), block_descriptor_length=Field(3))
HEADER_10 = Layout(8, mode_data_length=word(0), medium_type=Field(2), block_descriptor_length=word(6))

PAGES: Mapping[int, Layout] = {
    # Read/Write Error Recovery
    ERROR_RECOVERY: Layout(
        12,
        **_HEAD,
        awre=flag(2, 7), arre=flag(2, 6), tb=flag(2, 5), rc=flag(2, 4), per=flag(2, 2), dte=flag(2, 1), dcr=flag(2, 0),
        read_retry_count=Field(3), write_retry_count=Field(8), recovery_time_limit=word(10),
    ),
    # Caching (SBC-4 6.5.5)
    CACHING: Layout(20, **_HEAD, wce=flag(2, 2), rcd=flag(2, 0)),
    # Control (SPC-4 7.5.8)
    CONTROL: Layout(
        12,
        **_HEAD,
        tst=Field(2, 7, 3), d_sense=flag(2, 2), gltsd=flag(2, 1), queue_algorithm=Field(3, 7, 4), qerr=Field(3, 2, 2),
        swp=flag(4, 3), tas=flag(5, 6), busy_timeout=word(8),
    ),
    # Power Condition
    POWER_CONDITION: Layout(
        12, **_HEAD, idle=flag(3, 1), standby=flag(3, 0), idle_timer=long(4), standby_timer=long(8)
    ),
    # Timeout and Protect
    TIMEOUT_AND_PROTECT: Layout(
        12,
        **_HEAD,
        g3enable=flag(4, 3), tmoe=flag(4, 2), disp=flag(4, 1), swpp=flag(4, 0),
        group_1_timeout=word(6), group_2_timeout=word(8), group_3_timeout=word(10),
    ),
    # MM Capabilities and Mechanical Status (MMC-3 5.5.10): a legacy page that initiators still ask for. One write
    # speed descriptor stands behind it.
    CAPABILITIES: Layout(
        36,
        **_HEAD,
        dvd_ram_read=flag(2, 5), dvd_r_read=flag(2, 4), dvd_rom_read=flag(2, 3), method_2=flag(2, 2),
        cd_rw_read=flag(2, 1), cd_r_read=flag(2, 0),
        dvd_ram_write=flag(3, 5), dvd_r_write=flag(3, 4), test_write=flag(3, 2), cd_rw_write=flag(3, 1),
        cd_r_write=flag(3, 0),
        buf=flag(4, 7), multi_session=flag(4, 6), mode_2_form_2=flag(4, 5), mode_2_form_1=flag(4, 4),
        audio_play=flag(4, 0),
        read_bar_code=flag(5, 7), upc=flag(5, 6), isrc=flag(5, 5), c2_pointers=flag(5, 4), rw_deinterleaved=flag(5, 3),
        rw_supported=flag(5, 2), cd_da_accurate=flag(5, 1), cd_da_commands=flag(5, 0),
        loading_mechanism=Field(6, 7, 3), eject=flag(6, 3), prevent_jumper=flag(6, 2), lock_state=flag(6, 1),
        lock=flag(6, 0),
        side_change=flag(7, 4), software_slot_selection=flag(7, 3), disc_present=flag(7, 2),
        maximum_read_speed=word(8), volume_levels=word(10), buffer_size=word(12), current_read_speed=word(14),
        maximum_write_speed=word(18), current_write_speed=word(20), copy_management=word(22),
        rotation_control=Field(27, 1, 2), write_speed=word(28), write_speed_descriptors=word(30),
        descriptor_rotation=Field(33, 2, 3), descriptor_write_speed=word(34),
    ),
}  # fmt: skip

# The commands of group 1 answer within 10 s, those of group 2 (format) within 2 min.
DEFAULTS: Mapping[int, Mapping[str, int]] = {
    ERROR_RECOVERY: {"read_retry_count": 5, "write_retry_count": 5},
    CACHING: {"wce": 1},
    CONTROL: {"gltsd": 1, "queue_algorithm": 1, "busy_timeout": 0xFFFF},  # unrestricted reordering; no time limit
    POWER_CONDITION: {},
    TIMEOUT_AND_PROTECT: {"group_1_timeout": 10, "group_2_timeout": 120},
}
MAY_CHANGE: Mapping[int, Mapping[str, int]] = {
    CACHING: {"wce": 1},
}


def encode(code: int, values: Mapping[str, int]) -> bytes:
    """Return a mode page with its header."""
    layout = PAGES[code]
    return layout.pack(page_code=code, page_length=layout.size - 2, **values)


def _defaults() -> dict[int, dict[str, int]]:
    return {code: dict(values) for code, values in DEFAULTS.items()}


@dataclass
class ModePages:
    """The values of the mode pages, by page code and field name; page 2Ah is what the drive says of itself."""

    current: dict[int, dict[str, int]] = field(default_factory=_defaults)

    @property
    def write_cache(self) -> bool:
        """WCE."""
        return bool(self.current[CACHING]["wce"])

    def sense(self, code: int, control: int, capabilities: Mapping[str, int]) -> bytes:
        """Return the page, or all of them in ascending order, as MODE SENSE with this page control gives them.

        Raises:
            SavingNotSupported; InvalidFieldInCdb when there is no such page.
        """
        if control == SAVED:
            raise SavingNotSupported
        codes = sorted(PAGES) if code == ALL_PAGES else [code] if code in PAGES else []
        if not codes:
            raise InvalidFieldInCdb("there is no such mode page", field=(2, 5))
        return b"".join(encode(each, self._values(each, control, capabilities)) for each in codes)

    def _values(self, code: int, control: int, capabilities: Mapping[str, int]) -> Mapping[str, int]:
        if control == CHANGEABLE:
            return MAY_CHANGE.get(code, {})
        if code == CAPABILITIES:
            return capabilities
        return self.current[code] if not control else DEFAULTS[code]

    def select(self, data: bytes, at: int, capabilities: Mapping[str, int]) -> bool:
        """Take the pages of a MODE SELECT parameter list from byte `at` on; returns whether something changed.

        All of it is checked before any of it is taken.

        Raises:
            InvalidFieldInParameterList: a page that there is not, or a field that can't be changed.
            ParameterListLengthError: the list ends within a page.
        """
        wanted: dict[int, dict[str, int]] = {}
        while at < len(data):
            if len(data) - at < 2:
                raise ParameterListLengthError
            code, length = data[at] & 0x3F, data[at + 1]
            layout = PAGES.get(code)
            if layout is None or data[at] & 0xC0:
                raise InvalidFieldInParameterList("there is no such mode page", field=(at, 5), in_cdb=False)
            if length != layout.size - 2:
                raise InvalidFieldInParameterList("PAGE LENGTH is wrong", field=(at + 1, None), in_cdb=False)
            new = data[at : at + layout.size]
            if len(new) < layout.size:
                raise ParameterListLengthError
            old = self.sense(code, 0, capabilities)
            mask = self.sense(code, CHANGEABLE, capabilities)
            for number in range(2, layout.size):
                if (new[number] ^ old[number]) & ~mask[number]:
                    where = (at + number, None)
                    raise InvalidFieldInParameterList("a field that can't be changed", field=where, in_cdb=False)
            values = layout.unpack(new)
            wanted[code] = {name: values[name] for name in MAY_CHANGE.get(code, ())}
            at += layout.size
        changed = any(self.current[code][name] != new for code, page in wanted.items() for name, new in page.items())
        for code, page in wanted.items():
            if page:
                self.current[code].update(page)
        return changed
