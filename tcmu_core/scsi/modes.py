"""Mode pages (SPC-4 7.5, SBC-4 6.5) as state: current, changeable and default values; WCE, SWP, D_SENSE, TAS work."""

from __future__ import annotations

from dataclasses import dataclass

from tcmu_core.disk.device import Device
from tcmu_core.errors import (
    InvalidFieldInCdb,
    InvalidFieldInParameterList,
    ParameterListLengthError,
    SavingNotSupported,
)

ALL_PAGES = 0x3F
ALL_SUBPAGES = 0xFF
_SPF = 0x40
_CURRENT, _CHANGEABLE, _DEFAULT, _SAVED = range(4)  # page control, SPC-4 6.13.1

CACHING, CONTROL = (0x08, 0x00), (0x0A, 0x00)
_WCE, _SWP = 0x04, 0x08


@dataclass(slots=True)
class Page:
    """One mode page: its default body (after the page header), its current one, and which bits may change."""

    code: int
    subpage: int
    default: bytes
    changeable: bytes
    current: bytearray

    @classmethod
    def of(cls, code: int, subpage: int, length: int, values: dict[int, int], may: dict[int, int]) -> Page:
        """Make a page of `length` body bytes; keys are byte numbers as the standard counts them, from the header on."""
        head = 4 if subpage else 2
        body, mask = bytearray(length), bytearray(length)
        for byte, value in values.items():
            body[byte - head] = value
        for byte, value in may.items():
            mask[byte - head] = value
        return cls(code, subpage, bytes(body), bytes(mask), bytearray(body))

    def encode(self, control: int) -> bytes:
        """Return the page with its header for a page control value."""
        body = {_CURRENT: bytes(self.current), _CHANGEABLE: self.changeable}.get(control, self.default)
        if self.subpage:
            return bytes([_SPF | self.code, self.subpage]) + len(body).to_bytes(2, "big") + body
        return bytes([self.code, len(body)]) + body


Wanted = list[tuple[Page, bytes]]


class ModePages:
    """The mode pages of one unit, shared by all nexuses."""

    def __init__(self, device: Device) -> None:
        self._device = device
        wce = _WCE if device.write_cache else 0x00
        pages = [
            # Read-write error recovery (SBC-4 6.5.10): nothing is retried or reassigned on our side.
            Page.of(0x01, 0x00, 0x0A, {}, {}),
            # Disconnect-reconnect (SPC-4 7.5.10).
            Page.of(0x02, 0x00, 0x0E, {}, {}),
            # Caching (SBC-4 6.5.5): WCE.
            Page.of(0x08, 0x00, 0x12, {2: wce}, {2: _WCE}),
            # Control (SPC-4 7.5.8): D_SENSE, GLTSD in byte 2; QUEUE ALGORITHM MODIFIER 1 in 3; SWP in 4; TAS in 5;
            # BUSY TIMEOUT PERIOD unlimited in 8, 9.
            Page.of(0x0A, 0x00, 0x0A, {2: 0x02, 3: 0x10, 8: 0xFF, 9: 0xFF}, {2: 0x04, 4: 0x08, 5: 0x40}),
            # Control extension (SPC-4 7.5.9): maximum sense data length.
            Page.of(0x0A, 0x01, 0x1C, {}, {}),
            # Informational exceptions control (SPC-4 7.5.12): DEXCPT, there are none to report.
            Page.of(0x1C, 0x00, 0x0A, {2: 0x08}, {}),
        ]
        if device.device_type == 0x00 and device.thin:
            # Logical block provisioning (SBC-4 6.5.9): no threshold is enabled.
            pages.append(Page.of(0x1C, 0x02, 0x0C, {}, {}))
        self._pages = {(page.code, page.subpage): page for page in pages}

    @property
    def write_cache(self) -> bool:
        """WCE."""
        return bool(self._pages[CACHING].current[0] & _WCE)

    @write_cache.setter
    def write_cache(self, value: bool) -> None:
        self._pages[CACHING].current[0] = _WCE if value else 0x00

    @property
    def software_write_protect(self) -> bool:
        """SWP."""
        return bool(self._pages[CONTROL].current[2] & _SWP)

    @property
    def descriptor_sense(self) -> bool:
        """D_SENSE."""
        return bool(self._pages[CONTROL].current[0] & 0x04)

    @property
    def task_aborted_status(self) -> bool:
        """TAS."""
        return bool(self._pages[CONTROL].current[3] & 0x40)

    def reset(self) -> None:
        """Go back to the defaults; the write cache stays as the device has it."""
        for key, page in self._pages.items():
            if key != CACHING:
                page.current[:] = page.default

    def select(self, code: int, subpage: int, control: int) -> list[bytes]:
        """Return the encoded pages that a MODE SENSE asks for.

        Raises:
            InvalidFieldInCdb: there is no such page or subpage.
        """
        if control == _SAVED:
            raise SavingNotSupported
        if code == ALL_PAGES and subpage not in (0x00, ALL_SUBPAGES):
            raise InvalidFieldInCdb("SUBPAGE CODE is reserved", field=(3, 7))
        chosen = [
            page
            for key, page in sorted(self._pages.items(), key=lambda item: (item[0][0] & 0x3F, item[0][1]))
            if code in (page.code, ALL_PAGES) and subpage in (page.subpage, ALL_SUBPAGES)
        ]
        if not chosen:
            raise InvalidFieldInCdb("there is no such mode page", field=(2, 5) if not subpage else (3, 7))
        return [page.encode(control) for page in chosen]

    def wanted(self, data: bytes, at: int) -> Wanted:
        """Return the pages of a mode parameter list, from byte `at` on, with their new bodies, for `take`.

        Nothing is changed yet.

        Raises:
            InvalidFieldInParameterList, ParameterListLengthError.
        """
        wanted: Wanted = []
        while at < len(data):
            long = bool(data[at] & _SPF)
            head = 4 if long else 2
            if len(data) - at < head:
                raise ParameterListLengthError
            code, subpage = data[at] & 0x3F, data[at + 1] if long else 0
            length = int.from_bytes(data[at + 2 : at + 4], "big") if long else data[at + 1]
            page = self._pages.get((code, subpage))
            if data[at] & 0x80:
                raise InvalidFieldInParameterList("PS is reserved", field=(at, 7), in_cdb=False)
            if page is None or long != bool(subpage):
                raise InvalidFieldInParameterList("there is no such mode page", field=(at, 5), in_cdb=False)
            if length != len(page.default):
                raise InvalidFieldInParameterList("PAGE LENGTH is wrong", field=(at + 1, None), in_cdb=False)
            body = data[at + head : at + head + length]
            if len(body) < length:
                raise ParameterListLengthError
            for number, (new, old, mask) in enumerate(zip(body, page.current, page.changeable, strict=True)):
                if (new ^ old) & ~mask:
                    field = (at + head + number, None)
                    raise InvalidFieldInParameterList("a field that can't be changed", field=field, in_cdb=False)
            wanted.append((page, body))
            at += head + length
        return wanted

    def keeps_write_cache(self, wanted: Wanted) -> bool:
        """Return whether there is a write cache after `wanted`, if there is one before."""
        bodies = [body for page, body in wanted if (page.code, page.subpage) == CACHING]
        return not bodies or bool(bodies[-1][0] & _WCE)

    def protects(self, wanted: Wanted) -> bool:
        """Return whether `wanted` sets SWP where it is not set."""
        bodies = [body for page, body in wanted if (page.code, page.subpage) == CONTROL]
        return bool(bodies) and bool(bodies[-1][2] & _SWP) and not self.software_write_protect

    def take(self, wanted: Wanted) -> bool:
        """Take the pages that `wanted` has returned; tell whether that changes anything."""
        changed = any(body != bytes(page.current) for page, body in wanted)
        for page, body in wanted:
            page.current[:] = body
        return changed
