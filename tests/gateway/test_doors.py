"""Doors: allow-lists, documented health URLs, error shapes, the unified port."""

from __future__ import annotations

import json

import pytest
import requests

from tests.support import PATIENCE_S, threads
from tests.support.host import MODEL, Host

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


def post(host: Host, door: str, path: str, body: object) -> requests.Response:
    """POST through a door."""
    return host.session.post(host.door(door, path), json=body, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("door", "path"),
    [("tensorflow", "/v1/models"), ("tensorflow", "/v1/models/resnet50/status"), ("vllm", "/health"),
     ("ollama", "/api/version"), ("llm", "/health")],
)  # fmt: skip
def test_documented_health_urls_answer_200(shared_host: Host, door: str, path: str) -> None:
    """They are the operators' own, answered from the arbiter's state."""
    assert (
        shared_host.session.get(shared_host.door(door, path), timeout=PATIENCE_S).status_code == 200
    )


@pytest.mark.parametrize(
    ("door", "method", "path"),
    [
        ("vllm", "POST", "/sleep"), ("vllm", "POST", "/collective_rpc"), ("vllm", "POST", "/pause"),
        ("vllm", "POST", "/v1/load_lora_adapter"), ("tensorflow", "POST", "/v1/config"),
        ("tensorflow", "POST", "/v1/models/resnet50:reload"), ("ollama", "POST", "/api/blobs"),
        ("ollama", "POST", "/API/CHAT"), ("ollama", "POST", "//api/chat"), ("ollama", "POST", "/api/ch%61t"),
        ("llm", "POST", "/api/pull"), ("llm", "GET", "/metrics"),
    ],
)  # fmt: skip
def test_a_route_off_the_allow_list_is_403(
    shared_host: Host, door: str, method: str, path: str
) -> None:
    """Pause and development routes must not be reachable through a door, however they are spelt."""
    url = shared_host.door(door)
    with requests.Session() as session:
        session.trust_env = False
        request = requests.Request(method, url, json={}).prepare()
        request.url = url + path  # as it stands: requests would tidy it up
        reply = session.send(request, timeout=PATIENCE_S)
    assert reply.status_code == 403, reply.text
    assert "error" in reply.json()


def test_errors_have_the_shape_of_the_api_that_was_asked(shared_host: Host) -> None:
    """OpenAI's for vLLM and /v1, a plain sentence for Ollama and TensorFlow."""
    assert "message" in post(shared_host, "vllm", "/sleep", {}).json()["error"]
    assert isinstance(post(shared_host, "tensorflow", "/v1/config", {}).json()["error"], str)
    unknown = {"model": "llama3.1:8b", "prompt": "x"}
    assert isinstance(post(shared_host, "ollama", "/api/generate", unknown).json()["error"], str)
    below_v1 = post(shared_host, "ollama", "/v1/completions", unknown)
    assert below_v1.status_code == 404
    assert "allow-list" in below_v1.json()["error"]["message"]


def test_the_unified_port_routes_by_the_model_in_the_body(shared_host: Host) -> None:
    """Both LLMs behind one address; the name picks."""
    for model in (MODEL, "qwen2.5:3b"):
        reply = post(shared_host, "llm", "/v1/chat/completions", {"model": model, **CHAT})
        assert reply.status_code == 200
        assert reply.json()["model"] == model
    assert post(shared_host, "llm", "/v1/chat/completions", CHAT).status_code == 400
    unknown = post(shared_host, "llm", "/v1/chat/completions", {"model": "x", **CHAT})
    assert unknown.status_code == 404
    listed = shared_host.session.get(
        shared_host.door("llm", "/v1/models"), timeout=PATIENCE_S
    ).json()
    assert {row["id"] for row in listed["data"]} == {MODEL, "qwen2.5:3b"}


@pytest.mark.parametrize("model", [MODEL, "qwen2.5:3b"])
@pytest.mark.parametrize("size", [60_000, 70_000, 20_000_000])
def test_bodies_beyond_the_buffer_are_routed_too(shared_host: Host, model: str, size: int) -> None:
    """The model stands behind much text, as old OpenAI clients send it; no engine reads that much as a
    prompt (vLLM: 400).
    """
    text = json.dumps({"metadata": {"note": "x" * size}, "messages": CHAT["messages"]})
    body = f'{text[:-1]}, "model": "{model}", "max_tokens": 2}}'
    for door in ("llm", "vllm" if model == MODEL else "ollama"):
        reply = shared_host.session.post(
            shared_host.door(door, "/v1/chat/completions"),
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=PATIENCE_S,
        )
        assert reply.status_code == 200, (door, reply.text[:300])
        assert reply.json()["model"] == model


def test_lists_of_models_show_the_allow_list_only(shared_host: Host) -> None:
    """What lies on Ollama's disk beyond it cannot be used, so it is not shown."""
    tags = shared_host.session.get(
        shared_host.door("ollama", "/api/tags"), timeout=PATIENCE_S
    ).json()
    assert {row["name"] for row in tags["models"]} <= {"qwen2.5:3b", f"{MODEL}:latest"}
    assert {row["name"] for row in tags["models"]} >= {"qwen2.5:3b"}


def test_ollamas_changing_routes_work_from_this_machine(shared_host: Host) -> None:
    """A pull by the operator on the host is his right; other machines get 403 (render tests)."""
    reply = post(shared_host, "ollama", "/api/copy", {"source": "none", "destination": "x"})
    assert reply.status_code == 404
    assert "not found" in reply.text


def test_traffic_is_counted_at_the_doors(shared_host: Host) -> None:
    """Requests, status and latency per backend, under the documented names."""
    for _ in range(3):
        post(shared_host, "tensorflow", "/v1/models/resnet50:predict", {"instances": [1]})

    def counted() -> bool:
        text = shared_host.get("/metrics").text
        return (
            'gpu_arbiter_gateway_responses_total{backend="tensorflow",code="200"}' in text
            and 'gpu_arbiter_gateway_request_seconds_bucket{backend="tensorflow",le="1.0"}' in text
        )

    shared_host.wait(counted, "metrics of the door")
    assert shared_host.status()["gateway"]["problem"] == ""


def test_every_thread_of_the_daemon_is_in_the_table(shared_host: Host) -> None:
    """docs/threads.md: none unlisted, none missing of those that doors and a direct launcher have."""
    assert shared_host.process is not None
    found = threads.of(shared_host.process.pid)
    rows = threads.table()
    assert [name for name in found if not any(row.fits(name) for row in rows)] == []
    here = [row for row in rows if row.there in ("always", "doors", "direct", "engines")]
    assert [row.name for row in here if not any(row.fits(name) for name in found)] == []
    assert found.count("main") == 1
