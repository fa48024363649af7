"""The stand-in TensorFlow Serving's gRPC side, on TF Serving's own protos (ovmsclient carries them).

Test and demo extra only: without it the port closes what connects.
"""

from __future__ import annotations

import time
from concurrent import futures
from typing import Any

import grpc
from ovmsclient.tfs_compat.protos.tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from arbiterd.sim.engines.tensorflow_json import Invalid
from arbiterd.sim.engines.tensorflow_state import State


class Predict(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """PredictionService."""

    def __init__(self, state: State) -> None:
        self._state = state

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's own name
        """One row of output for each row of input."""
        name = request.model_spec.name
        faults = self._state.faults
        spec = request.model_spec
        asked = spec.version.value if spec.HasField("version") else None
        try:
            _, version = self._state.servable(name, asked, spec.version_label or None)
        except KeyError as error:
            self._state.count(name, "NOT_FOUND")
            text = f"Servable not found for request: {error.args[0]}"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        except Invalid as error:
            self._state.count(name, "INVALID_ARGUMENT")
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        faults.wait_while_hung()
        if self._state.refuses():
            self._state.count(name, "RESOURCE_EXHAUSTED")
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "OOM when allocating tensor")
        time.sleep(float(faults.get("predict_s", 0.01)))
        self._state.count(name, "OK")
        reply = predict_pb2.PredictResponse()
        reply.model_spec.name = name
        reply.model_spec.version.value = version
        for key, tensor in request.inputs.items():
            reply.outputs[f"{key}_out"].CopyFrom(tensor)
        return reply


class Status(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    """ModelService."""

    def __init__(self, state: State) -> None:
        self._state = state

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's own name
        """AVAILABLE for every model there is."""
        spec = request.model_spec
        model = self._state.models.get(spec.name)
        wanted = (
            [spec.version.value]
            if spec.HasField("version")
            else model.versions[::-1]
            if model
            else []
        )
        if not model and not wanted:
            told = f"Could not find any versions of model {spec.name}"
            context.abort(grpc.StatusCode.NOT_FOUND, told)
        reply = get_model_status_pb2.GetModelStatusResponse()
        for version in wanted:
            if model is None or version not in model.versions:
                told = f"Could not find version {version} of model {spec.name}"
                context.abort(grpc.StatusCode.NOT_FOUND, told)
            row = reply.model_version_status.add()
            row.version, row.state = version, 30
        return reply


def serve(state: State, port: int) -> Any:
    """Listen on every address, as the real one does; None when the port is taken."""
    options = [("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(32), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Predict(state), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(state), server)
    try:
        if not server.add_insecure_port(f"0.0.0.0:{port}"):
            return None
    except RuntimeError:
        return None
    server.start()
    return server
