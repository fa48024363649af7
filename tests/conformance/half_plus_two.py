"""TensorFlow Serving's test model, y = x / 2 + 2, as a SavedModel without variables. Written with the
protos that ovmsclient carries; saved_model.proto has two fields, which are written by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ovmsclient.tfs_compat.protos.tensorflow.core.framework import types_pb2
from ovmsclient.tfs_compat.protos.tensorflow.core.protobuf import meta_graph_pb2

_DTYPE = types_pb2.DT_FLOAT


def write(folder: Path) -> None:
    """``folder/saved_model.pb``."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = meta_graph_pb2.MetaGraphDef()
    graph.meta_info_def.tags.append("serve")
    graph.meta_info_def.tensorflow_version = "2.0.0"
    graph.graph_def.versions.producer = 1000
    _node(graph, "x", "Placeholder", dtype=_DTYPE).attr["shape"].shape.unknown_rank = True
    _constant(graph, "half", 0.5)
    _constant(graph, "two", 2.0)
    _node(graph, "scaled", "Mul", "x", "half", T=_DTYPE)
    _node(graph, "y", "AddV2", "scaled", "two", T=_DTYPE)
    signature = graph.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    for infos, name in ((signature.inputs, "x"), (signature.outputs, "y")):
        info = infos[name]
        info.name, info.dtype = f"{name}:0", _DTYPE
        for size in (-1, 1):
            info.tensor_shape.dim.add().size = size
    raw = graph.SerializeToString()
    # field 1, schema version: 1; field 2, meta graphs, by length
    (folder / "saved_model.pb").write_bytes(b"\x08\x01\x12" + _varint(len(raw)) + raw)


def _node(graph: Any, name: str, op: str, *inputs: str, **types: int) -> Any:
    made = graph.graph_def.node.add()
    made.name, made.op = name, op
    made.input.extend(inputs)
    for key, value in types.items():
        made.attr[key].type = value
    return made


def _constant(graph: Any, name: str, value: float) -> None:
    tensor = _node(graph, name, "Const", dtype=_DTYPE).attr["value"].tensor
    tensor.dtype = _DTYPE
    tensor.tensor_shape.SetInParent()
    tensor.float_val.append(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
