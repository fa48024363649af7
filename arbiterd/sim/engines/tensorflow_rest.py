"""The stand-in TensorFlow Serving's REST side, by the sources (master 9d981c5c):
model_servers/http_server.cc, http_rest_api_handler.cc, http_rest_api_util.cc, get_model_status_impl.cc.
"""

from __future__ import annotations

import re
import time
from typing import Any
from urllib.parse import unquote, urlsplit

from arbiterd.sim.engines import tensorflow_json as tf_json
from arbiterd.sim.engines.common import Handler, say
from arbiterd.sim.engines.tensorflow_json import Invalid
from arbiterd.sim.engines.tensorflow_state import Model, State

_WHERE = r"(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_PREDICT = re.compile(rf"/v1/models/([^/:]+){_WHERE}:(classify|regress|predict)", re.IGNORECASE)
_STATUS = re.compile(rf"/v1/models(?:/([^/:]+))?{_WHERE}(?:/(metadata))?", re.IGNORECASE)
_MAX_INT64 = 2**63 - 1
_HTTP = {  # ToHTTPStatusCode, as far as anything here ends so
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
}


class Failed(Exception):
    """A status other than OK: its code's name and its words."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


class Rest(Handler):
    """Paths under /v1/ are its, the page of metrics is where the file says; all else is libevent's."""

    state: State

    def _dispatch(self) -> None:
        path = urlsplit(self.path).path
        self.raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.state.metrics_path and path == self.state.metrics_path:
                self.reply(200, self.state.metrics(), "text/plain")
            elif path.lower().startswith("/v1/"):
                self._serve(path)
            else:
                self._not_found()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_HEAD = do_DELETE = do_PUT = do_PATCH = do_OPTIONS = _dispatch  # noqa: N815

    def _not_found(self) -> None:
        """libevent's own page; it ends the connection."""
        page = b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n"
        self.close_connection = True
        self.send_response_only(404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Connection", "close")
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page if self.command != "HEAD" else b"")

    def _serve(self, path: str) -> None:
        """Every request is counted, by model and status, whatever came of it."""
        self.model_name = ""
        code, value = "OK", None
        try:
            value = self._process(path)
        except Invalid as error:
            code, value = "INVALID_ARGUMENT", {"error": str(error)}
        except Failed as error:
            code, value = error.code, {"error": str(error)}
        self.state.count(self.model_name, code)
        # A preflight has no body, refused or not: its status is all there is.
        self.reply(_HTTP[code], None if self.command == "OPTIONS" else value)

    def _process(self, path: str) -> dict[str, Any] | None:
        if self.command == "OPTIONS":
            if re.search(r"https?://", self.headers.get("Origin") or ""):
                return None
            raise Failed("FAILED_PRECONDITION", "Origin header is missing in CORS preflight")
        pattern = {"POST": _PREDICT, "GET": _STATUS}.get(self.command)
        found = pattern.fullmatch(path) if pattern else None
        if found is None:
            raise Invalid(f"Malformed request: {self.command} {path}")
        name, version, label, verb = found.groups()
        self.model_name = unquote(name or "")
        if version is not None and int(version) > _MAX_INT64:
            raise Invalid(f"Failed to convert version: {version} to numeric.")
        number = int(version) if version is not None else None
        label = unquote(label) if label else None
        if self.command == "POST":
            return self._run(verb.lower(), number, label)
        if not self.model_name:
            raise Invalid("Missing model name in request.")
        if verb:
            return self._metadata(number, label)
        return self._status(number)

    def _status(self, version: int | None) -> dict[str, Any]:
        """A label is not looked at: the status of every version is the answer."""
        model = self.state.models.get(self.model_name)
        if version is not None:
            if model is None or version not in model.versions:
                words = f"Could not find version {version} of model {self.model_name}"
                raise Failed("NOT_FOUND", words)
        elif model is None:
            words = f"Could not find any versions of model {self.model_name}"
            raise Failed("NOT_FOUND", words)
        assert model is not None
        status = {"error_code": "OK", "error_message": ""}
        rows = [version] if version is not None else model.versions[::-1]
        return {
            "model_version_status": [
                {"version": str(one), "state": "AVAILABLE", "status": status} for one in rows
            ]
        }

    def _servable(self, version: int | None, label: str | None) -> tuple[Model, int]:
        """The model, and the version that answers."""
        try:
            return self.state.servable(self.model_name, version, label)
        except KeyError as error:
            raise Failed("NOT_FOUND", f"Servable not found for request: {error.args[0]}") from None

    def _metadata(self, version: int | None, label: str | None) -> dict[str, Any]:
        model, number = self._servable(version, label)
        spec = {"name": self.model_name, "signature_name": "", "version": str(number)}
        inner = {"signature_def": model.signatures}
        return {"model_spec": spec, "metadata": {"signature_def": inner}}

    def _run(self, verb: str, version: int | None, label: str | None) -> dict[str, Any]:
        """The body is read first, then the model looked for, then the tensors are made of it; what is
        refused there never comes to the session.
        """
        document = tf_json.parse(self.raw)
        asked = tf_json.signature_name(document)
        if verb != "predict":
            rows = tf_json.examples(document)
            self._servable(version, label)
            self._session()
            return {"results": [2.0 for _ in rows]}
        model, _ = self._servable(version, label)
        name = asked or "serving_default"
        if name not in model.signatures:
            raise Invalid(f'Serving signature name: "{name}" not found in signature def')
        types = {key: one["dtype"] for key, one in model.signatures[name]["inputs"].items()}
        is_rows, tensors = tf_json.inputs_of(document, types)
        self._session()
        first = next(iter(tensors.values()))
        made = tf_json.mapped(first, tf_json.half_plus_two)
        return {"predictions" if is_rows else "outputs": made}

    def _session(self) -> None:
        state = self.state
        state.faults.wait_while_hung()
        if state.refuses():
            words = state.oom_text
            say(words)
            raise Failed("RESOURCE_EXHAUSTED", words)
        time.sleep(float(state.faults.get("predict_s", 0.01)))

    def reply(self, status: int, value: Any = None, kind: str = "application/json") -> None:
        """Without a word of who serves it."""
        text = (
            "" if value is None else value if isinstance(value, str) else tf_json.debug_all(value)
        )
        raw = text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Date", self.date_time_string())
        if self.state.cors and self.path.lower().startswith("/v1/"):
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Allow-Methods", "POST, GET")
            self.send_header("Access-Control-Allow-Headers", "Content-Type")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)
