"""Exceptions that carry their SCSI meaning, and the one table from errno to sense."""

from __future__ import annotations

import errno
from typing import ClassVar


class TcmuError(Exception):
    """Base of everything that tcmu raises on purpose."""


class ConfigError(TcmuError):
    """A cfgstring, option or configuration file is wrong; the message says what to write instead.

    Where the fault has a place in a text that a person wrote, `text` is that and `span` its first character and the
    one behind its last.
    """

    def __init__(self, *args: object, text: str = "", span: tuple[int, int] = (0, 0)) -> None:
        super().__init__(*args)
        self.text = text
        self.span = span


class HandlerError(TcmuError):
    """A handler can't be used: not installed, broken at import, or its hooks don't fit."""


class StaleVersion(TcmuError):
    """Somebody else has replaced what a store of reservations held: load it, and try again."""


class NotHandled(TcmuError):
    """Returned or raised by `handle_cmd` to pass the command on to the engine."""


def text_of(error: BaseException) -> str:
    """Return what an exception says, or its type where it says nothing; never raises, whatever its `__str__` does."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        return f"{name} (which can't be printed)"
    if isinstance(error, TcmuError | OSError):
        return text or name
    return f"{name}: {text}" if text else name


def repr_of(value: object) -> str:
    """Return how Python writes a value, or its type where its `__repr__` breaks; never raises."""
    try:
        return repr(value)
    except BaseException:
        return f"a {type(value).__name__} (which can't be printed)"


class CommandError(TcmuError):
    """A command ends with something else than GOOD. Raise one of the subclasses.

    Class attributes give the SCSI meaning: `status` (SAM-5 5.3.1), and for CHECK CONDITION the `sense_key`
    (SPC-4 4.5.6) and the additional sense code and qualifier `asc`, `ascq` (SPC-4 annex F).
    An instance may carry `information` (SPC-4 4.5.2.2), `field` (byte, bit of the field pointer; bit None when
    the whole byte is meant), `in_cdb` (whether the field lies in the CDB or in the parameter list), and
    `progress` (0..65535).
    """

    status: ClassVar[int] = 0x02
    of_storage: ClassVar[bool] = False  # something is wrong with the storage, which its owner wants to read in the log
    sense_key: int = 0x4
    asc: int = 0x44
    ascq: int = 0x00

    def __init__(
        self,
        message: str = "",
        *,
        information: int | None = None,
        field: tuple[int, int | None] | None = None,
        in_cdb: bool = True,
        progress: int | None = None,
    ) -> None:
        super().__init__(message or (self.__doc__ or "").split(".", maxsplit=1)[0])
        self.information = information
        self.field = field
        self.in_cdb = in_cdb
        self.progress = progress


# -- statuses without sense (SAM-5 5.3.1) ---------------------------------------------------------------------------


class Busy(CommandError):
    """The device is busy: the initiator retries."""

    status = 0x08


class ReservationConflict(CommandError):
    """Another nexus holds a reservation."""

    status = 0x18


class TaskSetFull(CommandError):
    """No resources for one more command: the initiator retries."""

    status = 0x28


class TaskAborted(CommandError):
    """The command was aborted on behalf of another nexus (TAS = 1)."""

    status = 0x40


# -- NOT READY -----------------------------------------------------------------------------------------------------


class NotReady(CommandError):
    """The logical unit is not ready."""

    of_storage = True
    sense_key, asc, ascq = 0x2, 0x04, 0x00


class BecomingReady(NotReady):
    """The logical unit is becoming ready."""

    ascq = 0x01


class NotReadyStopped(NotReady):
    """The logical unit was stopped; START STOP UNIT starts it."""

    of_storage = False
    ascq = 0x02


class FormatInProgress(NotReady):
    """A format is in progress."""

    of_storage = False
    ascq = 0x04


class SanitizeInProgress(NotReady):
    """A sanitize operation is in progress."""

    of_storage = False
    ascq = 0x1B


class MediumNotPresent(NotReady):
    """There is no medium."""

    of_storage = False
    asc, ascq = 0x3A, 0x00


# -- MEDIUM ERROR --------------------------------------------------------------------------------------------------


class MediumError(CommandError):
    """The medium can't be read or written."""

    of_storage = True
    sense_key, asc, ascq = 0x3, 0x11, 0x00


class ReadError(MediumError):
    """Unrecovered read error."""


class WriteError(MediumError):
    """Write error."""

    asc = 0x0C


class FormatCorrupted(MediumError):
    """The medium's format is corrupted."""

    asc = 0x31


# -- HARDWARE ERROR ------------------------------------------------------------------------------------------------


class HardwareError(CommandError):
    """Internal target failure."""

    of_storage = True
    sense_key = 0x4


class StorageTimeout(HardwareError):
    """The storage behind the device did not answer in time."""

    asc, ascq = 0x3E, 0x02


class CommunicationFailure(HardwareError):
    """The storage behind the device can't be reached."""

    asc, ascq = 0x08, 0x00


# -- ILLEGAL REQUEST -----------------------------------------------------------------------------------------------


class IllegalRequest(CommandError):
    """The command can't be carried out as it was asked."""

    sense_key, asc, ascq = 0x5, 0x24, 0x00


class InvalidOpcode(IllegalRequest):
    """Invalid command operation code."""

    asc = 0x20


class LbaOutOfRange(IllegalRequest):
    """Logical block address out of range."""

    asc = 0x21


class InvalidFieldInCdb(IllegalRequest):
    """Invalid field in CDB."""


class InvalidFieldInParameterList(IllegalRequest):
    """Invalid field in parameter list."""

    asc = 0x26


class ParameterListLengthError(IllegalRequest):
    """Parameter list length error."""

    asc = 0x1A


class LogicalUnitNotSupported(IllegalRequest):
    """There is no such logical unit."""

    asc = 0x25


class SavingNotSupported(IllegalRequest):
    """Saving parameters is not supported."""

    asc = 0x39


class MediumRemovalPrevented(IllegalRequest):
    """Medium removal is prevented."""

    asc, ascq = 0x53, 0x02


# -- the rest ------------------------------------------------------------------------------------------------------


class UnitAttention(CommandError):
    """Something changed that the initiator has to know; `UnitAttention.of(asc, ascq)` makes one."""

    sense_key, asc, ascq = 0x6, 0x29, 0x00

    @classmethod
    def of(cls, asc: int, ascq: int) -> UnitAttention:
        """Return the unit attention with this additional sense code and qualifier (SPC-4 annex F)."""
        attention = cls(f"unit attention {asc:02X}/{ascq:02X}")
        attention.asc, attention.ascq = asc, ascq
        return attention


class DataProtect(CommandError):
    """The medium is write-protected."""

    sense_key, asc, ascq = 0x7, 0x27, 0x00


class WriteProtected(DataProtect):
    """The device is read-only or its software write protection is on."""


class SpaceAllocationFailed(DataProtect):
    """No space left on the storage behind the device (permanent until somebody makes room)."""

    ascq = 0x07


class CopyAborted(CommandError):
    """A copy could not be completed."""

    sense_key, asc, ascq = 0xA, 0x0D, 0x01


class AbortedCommand(CommandError):
    """The device aborted the command; the initiator may try again."""

    sense_key, asc, ascq = 0xB, 0x00, 0x00


class Miscompare(CommandError):
    """The data did not match."""

    sense_key, asc, ascq = 0xE, 0x1D, 0x00


# One table: what the storage says (errno) becomes what the initiator hears. What is not in it is our own failure, or
# the handler's: an initiator that is told of a medium error would take the data for lost.
_ERRNO: dict[int, type[CommandError]] = {
    errno.EIO: MediumError,
    errno.EREMOTEIO: MediumError,
    errno.ENODATA: MediumError,
    errno.EBADMSG: MediumError,
    errno.EUCLEAN: MediumError,
    errno.ENOENT: MediumError,  # a part of what was stored is gone
    errno.EAGAIN: Busy,
    errno.EBUSY: Busy,
    errno.EINTR: Busy,
    errno.ETXTBSY: Busy,
    errno.EMFILE: Busy,
    errno.ENFILE: Busy,
    errno.ENOMEM: TaskSetFull,
    errno.ENOBUFS: TaskSetFull,
    errno.ETIMEDOUT: StorageTimeout,
    errno.ETIME: StorageTimeout,
    errno.ECONNREFUSED: CommunicationFailure,
    errno.ECONNRESET: CommunicationFailure,
    errno.ECONNABORTED: CommunicationFailure,
    errno.EPIPE: CommunicationFailure,
    errno.EHOSTUNREACH: CommunicationFailure,
    errno.EHOSTDOWN: CommunicationFailure,
    errno.ENETUNREACH: CommunicationFailure,
    errno.ENETDOWN: CommunicationFailure,
    errno.ENETRESET: CommunicationFailure,
    errno.EADDRNOTAVAIL: CommunicationFailure,
    errno.ENOLINK: CommunicationFailure,
    errno.ECOMM: CommunicationFailure,
    errno.EPROTO: CommunicationFailure,
    errno.ENODEV: CommunicationFailure,
    errno.ENXIO: CommunicationFailure,
    errno.ESTALE: CommunicationFailure,
    errno.EROFS: WriteProtected,
    errno.EPERM: WriteProtected,
    errno.EACCES: WriteProtected,
    errno.ENOSPC: SpaceAllocationFailed,
    errno.EDQUOT: SpaceAllocationFailed,
    errno.EFBIG: SpaceAllocationFailed,
    errno.ENOMEDIUM: MediumNotPresent,
    errno.EREMCHG: MediumNotPresent,
    errno.ENOTCONN: NotReady,
    errno.ESHUTDOWN: NotReady,
    errno.EOPNOTSUPP: InvalidOpcode,
    errno.EILSEQ: Miscompare,
    errno.ECANCELED: AbortedCommand,
}
# What Python raises without a number says it by its type.
_TYPES: tuple[tuple[type[OSError], type[CommandError]], ...] = (
    (TimeoutError, StorageTimeout),
    (BlockingIOError, Busy),
    (InterruptedError, Busy),
    (ConnectionError, CommunicationFailure),
    (PermissionError, WriteProtected),
)


def from_oserror(error: OSError, *, writing: bool) -> CommandError:
    """Return the command error that `error` means; `writing` tells a write error from a read error."""
    kind = _meaning(error)
    if kind is MediumError:
        kind = WriteError if writing else ReadError
    return kind(text_of(error))


def _meaning(error: OSError) -> type[CommandError]:
    if any(kind.__module__ == "ssl" for kind in type(error).__mro__):  # its numbers are OpenSSL's
        return CommunicationFailure
    if not isinstance(error.errno, int):
        for kind, meaning in _TYPES:
            if isinstance(error, kind):
                return meaning
        # One that wraps another has nothing of its own to say: urllib's has it as its argument.
        for inner in (error.__cause__, *error.args):
            if isinstance(inner, OSError) and inner is not error:
                return _meaning(inner)
        return MediumError
    if error.errno < 0:  # socket.gaierror: a name that can't be resolved (getaddrinfo(3))
        return CommunicationFailure
    return _ERRNO.get(error.errno, HardwareError)
