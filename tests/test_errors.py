import errno
import inspect
import socket
import ssl
import urllib.error

import pytest

from tcmu_core import errors

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.CommandError)]

# What an initiator hears when the storage fails with an errno: (reading, writing) as status, or key/asc/ascq.
BUSY, FULL = (0x08,), (0x28,)
PROTECTED, NO_SPACE = (7, 0x27, 0x00), (7, 0x27, 0x07)
READ, WRITE = (3, 0x11, 0x00), (3, 0x0C, 0x00)
NO_MEDIUM, NOT_READY = (2, 0x3A, 0x00), (2, 0x04, 0x00)
INTERNAL, UNREACHABLE, LATE = (4, 0x44, 0x00), (4, 0x08, 0x00), (4, 0x3E, 0x02)
MEANING = {
    **dict.fromkeys((errno.EIO, errno.EREMOTEIO, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN), (READ, WRITE)),
    errno.ENOENT: (READ, WRITE),
    **dict.fromkeys((errno.EINVAL, errno.EBADF, errno.EFAULT, errno.ENOSYS, errno.EISDIR), (INTERNAL, INTERNAL)),
    **dict.fromkeys(
        (
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.ECONNABORTED,
            errno.EPIPE,
            errno.EHOSTUNREACH,
            errno.EHOSTDOWN,
            errno.ENETUNREACH,
            errno.ENETDOWN,
            errno.ENODEV,
            errno.ENXIO,
            errno.ESTALE,
        ),
        (UNREACHABLE, UNREACHABLE),
    ),
    errno.EMFILE: (BUSY, BUSY),
    errno.ETIME: (LATE, LATE),
    errno.EPERM: (PROTECTED, PROTECTED),
    errno.EACCES: (PROTECTED, PROTECTED),
    errno.ECANCELED: ((0xB, 0x00, 0x00), (0xB, 0x00, 0x00)),
    errno.EAGAIN: (BUSY, BUSY),
    errno.EBUSY: (BUSY, BUSY),
    errno.ENOMEM: (FULL, FULL),
    errno.ENOBUFS: (FULL, FULL),
    errno.ETIMEDOUT: ((4, 0x3E, 0x02), (4, 0x3E, 0x02)),
    errno.EROFS: (PROTECTED, PROTECTED),
    errno.ENOSPC: (NO_SPACE, NO_SPACE),
    errno.EDQUOT: (NO_SPACE, NO_SPACE),
    errno.EFBIG: (NO_SPACE, NO_SPACE),
    errno.ENOMEDIUM: (NO_MEDIUM, NO_MEDIUM),
    errno.EREMCHG: (NO_MEDIUM, NO_MEDIUM),
    errno.ENOTCONN: (NOT_READY, NOT_READY),
    errno.ESHUTDOWN: (NOT_READY, NOT_READY),
    errno.EOPNOTSUPP: ((5, 0x20, 0x00), (5, 0x20, 0x00)),
    errno.EILSEQ: ((14, 0x1D, 0x00), (14, 0x1D, 0x00)),
}


def meaning(error):
    return (error.sense_key, error.asc, error.ascq) if error.status == 0x02 else (error.status,)


@pytest.mark.parametrize("code", MEANING, ids=errno.errorcode.get)
def test_an_errno_has_a_meaning_for_reads_and_for_writes(code):
    found = [errors.from_oserror(OSError(code, "x"), writing=writing) for writing in (False, True)]
    assert tuple(map(meaning, found)) == MEANING[code]


def test_every_errno_gives_some_command_error_that_says_what_happened():
    for code in errno.errorcode:
        error = errors.from_oserror(OSError(code, "the cable is out", "/disk"), writing=True)
        assert isinstance(error, errors.CommandError)
        assert "the cable is out" in str(error)


def caused(error, cause):
    error.__cause__ = cause
    return error


# What Python's libraries raise, mostly without a number.
WITHOUT_A_NUMBER = {
    "plain": (OSError("the cable is out"), READ),
    "a number as text": (OSError(errno.ETIMEDOUT), READ),
    "timeout": (TimeoutError(), LATE),
    "timeout with a number": (TimeoutError(errno.ETIMEDOUT, "x"), LATE),
    "connection": (ConnectionError("lost"), UNREACHABLE),
    "refused": (ConnectionRefusedError(), UNREACHABLE),
    "reset": (ConnectionResetError("by peer"), UNREACHABLE),
    "broken pipe": (BrokenPipeError(), UNREACHABLE),
    "would block": (BlockingIOError(), BUSY),
    "interrupted": (InterruptedError(), BUSY),
    "permission": (PermissionError(), PROTECTED),
    "no such host": (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), UNREACHABLE),
    "TLS": (ssl.SSLError(1, "bad certificate"), UNREACHABLE),
    "TLS's timeout": (ssl.SSLZeroReturnError(), UNREACHABLE),
    "HTTP": (urllib.error.URLError(ConnectionRefusedError(errno.ECONNREFUSED, "x")), UNREACHABLE),
    "with a cause": (caused(OSError("reading failed"), TimeoutError()), LATE),
    "with a cause that is none of the system's": (caused(OSError("reading failed"), ValueError()), READ),
}


@pytest.mark.parametrize("what", WITHOUT_A_NUMBER)
def test_an_oserror_without_an_errno_means_what_its_type_says_and_has_a_text(what):
    error, expected = WITHOUT_A_NUMBER[what]
    found = errors.from_oserror(error, writing=False)
    assert meaning(found) == expected
    assert str(found).strip(), "nothing stands behind 'failed: '"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_each_command_error_has_a_status_a_meaning_and_a_text(kind):
    error = kind()
    assert error.status in (0x02, 0x08, 0x18, 0x28, 0x40)
    assert 0 < error.sense_key <= 0xE
    assert 0 <= error.asc <= 0xFF
    assert 0 <= error.ascq <= 0xFF
    assert str(error), "its docstring's first sentence is its text"
    assert str(kind("why")) == "why"


def test_no_two_command_errors_mean_the_same():
    general = {errors.CommandError, errors.IllegalRequest, errors.DataProtect, errors.MediumError}
    seen = {}
    for kind in ALL:
        if kind not in general:
            assert seen.setdefault(meaning(kind()), kind) is kind


def test_details_travel_with_the_error():
    error = errors.InvalidFieldInCdb(field=(2, 7), information=5, progress=1)
    assert (error.field, error.information, error.progress, error.in_cdb) == ((2, 7), 5, 1, True)


def test_a_unit_attention_is_made_for_any_code():
    one, two = errors.UnitAttention.of(0x2A, 0x09), errors.UnitAttention.of(0x29, 0x03)
    assert (meaning(one), meaning(two)) == ((6, 0x2A, 0x09), (6, 0x29, 0x03))
