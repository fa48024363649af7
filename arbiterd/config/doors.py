"""Files of secrets: certificate and keys of the doors, the token of the API."""

from __future__ import annotations

import ssl
import stat

from arbiterd.config.parse import Report
from arbiterd.config.schema import FileSettings
from arbiterd.files import bounded
from arbiterd.files.env_text import keys_in
from arbiterd.secrets.token_file import read_token


def check_doors(settings: FileSettings, report: Report) -> None:
    """Certificate and keys, as far as the one who checks may read them."""
    for key in ("certificate", "key_file") if not settings.gateway.enabled else ():
        if getattr(settings.gateway, key):
            wrong = "no door is there to use it: enabled = false opens the engines' own ports"
            report.add(("gateway", key), wrong, "write enabled = true, or take this line out")
    if settings.gateway.certificate:
        _check_certificate(settings.gateway.certificate, report)
    if settings.gateway.key_file:
        _check_keys(settings.gateway.key_file, report)


def check_token(settings: FileSettings, report: Report) -> None:
    """A token that cannot be read shuts the API; one that others may read opens it."""
    path, at = settings.arbiter.token_file, ("arbiter", "token_file")
    if not path:
        return
    right = f"umask 077; openssl rand -hex 32 > {path}"
    try:
        read_token(path)
    except PermissionError:
        report.add(at, f"{path} may not be read by you: not looked at", "check as root", "warning")
    except OSError as error:
        report.add(at, f"{path} cannot be read: {error.strerror}", right)
    except ValueError as error:
        wrong, _, right = str(error).partition(": ")
        report.add(at, wrong, right)


def _check_keys(path: str, report: Report) -> None:
    """A file without a key shuts every door; one that others may read opens them."""
    at = ("gateway", "key_file")
    right = f"write one key a line into it, and: chmod 600 {path}"
    try:
        keys = keys_in(bounded.regular(path, bounded.FILE_BYTES).decode())
        mode = bounded.stat(path).st_mode
    except PermissionError:
        report.add(at, f"{path} may not be read by you: not looked at", "check as root", "warning")
        return
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        report.add(at, f"{path} cannot be read: {why}", right)
        return
    if not keys:
        report.add(at, f"{path} holds no key: every client would get 401", right)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        wrong = f"{path} can be read by every user of this host"
        report.add(at, wrong, f"chmod 600 {path}", "warning")


def _check_certificate(path: str, report: Report) -> None:
    """HAProxy wants chain and key in one PEM file, and starts no door at all without them."""
    at = ("gateway", "certificate")
    right = "name a PEM file with the certificate, its chain and its private key"
    try:
        bounded.regular(path, bounded.FILE_BYTES)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        bounded.aside(path, lambda: context.load_cert_chain(path, password=_no_password))
    except PermissionError:
        report.add(at, f"{path} may not be read by you", "check as root", "warning")
    except ssl.SSLError as error:
        why = (error.reason or "no PEM in it").replace("_", " ").lower()
        report.add(at, f"{path} cannot be used: {why}", right)
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "its key has a password"
        report.add(at, f"{path} cannot be used: {why}", right)


def _no_password() -> str:
    """Never ask the terminal."""
    msg = "its key has a password"
    raise ValueError(msg)
