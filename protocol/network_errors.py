"""What went wrong on the network, in words: the texts of libraries name objects, addresses twice and error numbers."""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator

_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"})
"""OpenSSL's reasons when the other side answers in something else than TLS."""
_NO_ROUTE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})


def network_cause(error: BaseException) -> str:
    """The cause of a failed connection or exchange, as a clause that may follow a colon."""
    for one in _layers(error):
        if cause := _known(one):
            return cause
    text = str(error)
    return text if text and "<" not in text else type(error).__name__


def speaks_no_tls(error: BaseException | None) -> bool:
    """Whether a connection failed because the listener speaks something else: often the port for phones."""
    return error is not None and any(_reason(e) in _NOT_TLS for e in _layers(error))


def _reason(error: BaseException) -> str:
    """OpenSSL's name of what happened; the wrappers of HTTP libraries are SSLErrors without one."""
    return getattr(error, "reason", None) or "" if isinstance(error, ssl.SSLError) else ""


def _layers(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps, the innermost first; HTTP libraries keep the system's error in an attribute."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error.__cause__
    if isinstance(inner, BaseException) and inner is not error:
        yield from _layers(inner)
    yield error


def _known(error: BaseException) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            why = getattr(error, "verify_message", "") or "verification failed"
            return f"its certificate is not the one expected ({why})"
        case ssl.SSLError() if _reason(error) in _NOT_TLS:
            return "what listens there does not speak TLS"
        case ssl.SSLError():
            return f"the TLS handshake failed ({(_reason(error) or 'no reason given').replace('_', ' ').lower()})"
        case OSError() if error.errno is not None and error.errno < 0:  # of getaddrinfo: EAI_NONAME and its like
            return "its host name is not known"
        case UnicodeError():  # of a name with an empty or overlong label, before it is even looked up
            return "its host name cannot be one"
        case ConnectionRefusedError():
            return "nothing listens there (connection refused)"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
            return "the connection broke"
        case TimeoutError():
            return "no answer in time"
        case OSError() if error.errno in _NO_ROUTE:
            return "no network leads there"
        case OSError() if error.strerror and error.errno and getattr(error, "os_error", None) is None:
            return error.strerror.lower()
    return ""
