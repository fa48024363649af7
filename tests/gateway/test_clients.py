"""Official clients as they are: openai, ollama and TF Serving's gRPC through the doors."""

from __future__ import annotations

import time
from typing import Any

import grpc
import ollama
import openai
import pytest
from ovmsclient import make_grpc_client

from tests.support import PATIENCE_S
from tests.support.host import MODEL, Host

GRPC = True  # the hosts of these tests serve it
ROWS = {"x": [1.0, 2.0]}


def test_openai_streams_through_vllms_and_the_unified_door(shared_host: Host) -> None:
    """base_url is all that changes."""
    for door in ("vllm", "llm"):
        client = openai.OpenAI(base_url=shared_host.door(door, "/v1"), api_key="none")
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], max_tokens=5, stream=True
        )
        words = [part.choices[0].delta.content for part in stream if part.choices]
        client.close()
        assert len([word for word in words if word]) == 5


def test_openai_retries_when_retry_after_says_so(host: Host) -> None:
    """A drained vLLM with no substitute: two retries, not sooner than it was told."""
    text = host.config.read_text()
    host.config.write_text(text[: text.index("[[failover]]")])
    assert host.ctl("reload", "--wait=done").returncode == 0
    assert host.ctl("drain", "vllm").returncode == 0
    host.wait_phase("vllm", "draining")
    refused = host.session.post(
        host.door("vllm", "/v1/completions"),
        json={"model": MODEL, "prompt": "x"},
        timeout=PATIENCE_S,
    )
    promised = int(refused.headers["Retry-After"])
    client = openai.OpenAI(base_url=host.door("vllm", "/v1"), api_key="none", max_retries=1)
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as told:
        client.completions.create(model=MODEL, prompt="x")
    client.close()
    assert time.monotonic() - began >= promised
    assert "drained" in str(told.value)


def test_ollamas_own_client_streams(shared_host: Host) -> None:
    """generate, chat, embed, list and ps."""
    client = ollama.Client(host=shared_host.door("ollama"))
    parts = list(
        client.generate(
            model="qwen2.5:3b", prompt="x", stream=True, options={"num_predict": 4, "num_ctx": 99}
        )
    )
    assert len([p for p in parts if p.response]) >= 3
    assert client.chat(
        model="qwen2.5:3b", messages=[{"role": "user", "content": "x"}]
    ).message.content
    with pytest.raises(ollama.ResponseError, match="does not support embeddings"):
        client.embed(model="qwen2.5:3b", input="x")  # the engine's own 501, of a chat model
    assert "qwen2.5:3b" in [one.model for one in client.list().models]
    assert [one.model for one in client.ps().models] == ["qwen2.5:3b"]
    with pytest.raises(ollama.ResponseError, match="allow-list"):
        client.generate(model="llama3.1:8b", prompt="x")
    client._client.close()


def predict(host: Host) -> Any:
    """One predict by gRPC."""
    client = make_grpc_client(f"127.0.0.1:{host.ports['grpc']}")
    return client.predict(inputs=ROWS, model_name="resnet50", model_version=1, timeout=PATIENCE_S)


def test_grpc_predict_goes_through_the_door(shared_host: Host) -> None:
    """TF Serving's own protos, h2c."""
    assert list(predict(shared_host)) == [1.0, 2.0]


def test_a_shed_backend_is_unavailable_by_grpc_with_its_reason(host: Host) -> None:
    """UNAVAILABLE is what gRPC clients retry on."""
    assert host.ctl("drain", "tensorflow").returncode == 0
    host.wait_phase("tensorflow", "draining")
    with pytest.raises(ConnectionError) as told:  # what it makes of UNAVAILABLE
        predict(host)
    assert "drained" in str(told.value)
    channel = grpc.insecure_channel(f"127.0.0.1:{host.ports['grpc']}")
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    reload = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")
    with pytest.raises(grpc.RpcError) as denied:
        reload(b"", timeout=PATIENCE_S)
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    channel.close()
