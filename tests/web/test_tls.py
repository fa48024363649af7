"""etc/haproxy/api-tls.cfg as it is shipped, in front of a real API."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import PATIENCE_S, free_port, wait_until
from tests.web.site import Site

SHIPPED = Path(__file__).resolve().parents[2] / "etc/haproxy/api-tls.cfg"


def certificate(folder: Path) -> Path:
    """A certificate of its own for localhost, with its key."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-keyout", folder / "key", "-out", folder / "crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_text((folder / "crt").read_text() + (folder / "key").read_text())
    return both


@pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is not installed")
def test_the_api_behind_the_shipped_tls_frontend(site: Site, tmp_path: Path) -> None:
    """TLS, the token, and no process of others for who comes through it."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123\n")
    token.chmod(0o600)
    seen = site.holder.get()
    assert seen is not None
    arbiter = replace(seen.settings.arbiter, token_file=str(token))
    site.holder.put(replace(seen, settings=replace(seen.settings, arbiter=arbiter)))
    pem, port = certificate(tmp_path), free_port()
    text = SHIPPED.read_text().replace("/etc/haproxy/gpu-arbiter.pem", str(pem))
    text = text.replace(":9443", f"127.0.0.1:{port}").replace(
        "127.0.0.1:9480", f"127.0.0.1:{site.port}"
    )
    config = tmp_path / "api-tls.cfg"
    config.write_text(text)
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE

    def ask(*headers: tuple[str, str]) -> int:
        request = urllib.request.Request(
            f"https://127.0.0.1:{port}/v1/status", headers=dict(headers)
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )
        try:
            with opener.open(request, timeout=PATIENCE_S) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    def up() -> bool:
        with suppress(urllib.error.URLError, OSError):
            return ask() == 401
        return False

    process = subprocess.Popen(["haproxy", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        wait_until(up, 30, "the frontend")
        assert ask(("Authorization", "Bearer 0123456789abcdef0123")) == 200
        assert (
            ask(("Authorization", "Bearer 0123456789abcdef0123"), ("Host", "evil.example")) == 403
        )
    finally:
        process.kill()
        process.wait()
