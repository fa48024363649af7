"""What the imports of a service cost without being of use, left out; for entry points alone."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

_CERTIFICATES = "SSL_CERT_FILE"  # OpenSSL's own variable


@contextmanager
def cheaper() -> Iterator[None]:
    """Imports make no garbage, but 130,000 objects to look through: a tenth of a start, and part of each
    full collection later. aiohttp.connector reads every CA certificate of the host when it is imported;
    services speak TLS to nobody.
    """
    gc.disable()
    given = os.environ.get(_CERTIFICATES)
    os.environ[_CERTIFICATES] = os.devnull
    try:
        yield
    finally:
        if given is None:
            del os.environ[_CERTIFICATES]
        else:
            os.environ[_CERTIFICATES] = given
        gc.freeze()
        gc.enable()
