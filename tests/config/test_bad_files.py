"""Two dozen broken files, each with its message. All problems of a file come at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from arbiterd.config import load
from arbiterd.config.parse import MOST_TOLD
from arbiterd.errors import ConfigRefused, Problem
from tests.config.test_good_files import FIFTEEN

TF = 'tensorflow = { command = ["tensorflow_model_server"], models = { resnet50 = "/srv/models/resnet50" } }'
VLLM = 'vllm       = { command = ["/opt/vllm/bin/vllm", "serve", "Qwen/Qwen2.5-3B-Instruct"] }'
OLLAMA = 'ollama     = { models = ["qwen2.5:3b"] }'
A_VLLM = 'vllm       = { gpu = 0, memory = "55%" }'
END = 'ollama     = { gpu = 1, memory = "20%" }\n'


def _vllm(*extra: str, command: str = '"vllm", "serve", "M"') -> tuple[str, str]:
    rest = "".join(f", {one}" for one in extra)
    return VLLM, f"vllm = {{ command = [{command}]{rest} }}"


def _problems(tmp_path: Path, text: str) -> tuple[Problem, ...]:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigRefused) as refused:
        load(path, {})
    return refused.value.problems


# (what it is, old text, new text, line, key, part of what is wrong, part of what would be right)
BROKEN = [
    ("mode missing", 'mode = "A"', "", 1, "mode", "is missing", 'mode = "A"'),
    ("unknown mode", 'mode = "A"', 'mode = "C"', 1, "mode", "unknown mode 'C'", "A, B"),
    ("unknown table", 'mode = "A"', 'mode = "A"\ncolour = 1', 2, "colour", "unknown key", "known:"),
    ("unknown key, near", OLLAMA, "ollama = { paralell = 2 }", 6, "backends.ollama.paralell", "unknown key 'paralell'", "did you mean 'parallel'?"),
    ("key of another kind", OLLAMA, "ollama = { max_model_len = 9 }", 6, "backends.ollama.max_model_len", "is a key of vllm", "take it out"),
    ("a count that nothing can hold", *_vllm("max_model_len = 99999999999999999999"), 5, "backends.vllm.max_model_len", "99999999999999999999", "2147483647"),
    ("unknown kind", OLLAMA, 'llama = { kind = "olama" }', 6, "backends.llama.kind", "'olama' is no kind", "did you mean 'ollama'?"),
    ("a name without kind", OLLAMA, "llama = { port = 1 }", 6, "backends.llama", "has no kind", "write kind = one of"),
    ("a bad name", OLLAMA, '"My LLM" = { kind = "ollama" }', 6, "backends.My LLM", "is no backend name", "a-z"),
    ("a bare duration", *_vllm("queue_timeout = 10"), 5, "backends.vllm.queue_timeout", "10 has no unit", '"10s"'),
    ("an unknown unit", *_vllm('queue_timeout = "10 weeks"'), 5, "backends.vllm.queue_timeout", "is no duration", "min"),
    ("a bare share", A_VLLM, "vllm = { gpu = 0, memory = 0.55 }", 10, "modes.A.vllm.memory", "0.55 has no unit", '"55%"'),
    ("over 100 %", A_VLLM, 'vllm = { gpu = 0, memory = "155%" }', 10, "modes.A.vllm.memory", "is no share", "1% to 100%"),
    ("shares over the card", A_VLLM, 'vllm = { gpu = 0, memory = "65%" }', 11, "modes.A.ollama.memory", "= 105% of GPU 0", "lower one"),
    ("shared without memory", A_VLLM, "vllm = { gpu = 0 }", 10, "modes.A.vllm", "has no memory", 'memory = "55%"'),
    ("a gpu in quotes", A_VLLM, 'vllm = { gpu = "0", memory = "5%" }', 10, "modes.A.vllm.gpu", "'0' names no GPU", "write gpu = 0"),
    ("a gpu twice", A_VLLM, 'vllm = { gpu = [1, 1], memory = "5%" }', 10, "modes.A.vllm.gpu", "named twice", "once"),
    ("memory on the cpu", A_VLLM, 'vllm = { gpu = "cpu", memory = "5%" }', 10, "modes.A.vllm.memory", "on the CPU", "take memory out"),
    ("a mode of strangers", A_VLLM, 'vlm = "55%"', 10, "modes.A.vlm", "unknown backend 'vlm'", "did you mean 'vllm'?"),
    ("a wrong assertion", A_VLLM, A_VLLM + '\nsharing = "partitioned"', 11, "modes.A.sharing", "every backend names one device", "shared"),
    ("an owned flag", *_vllm(command='"vllm", "serve", "M", "--port", "9"'), 5, "backends.vllm.command", "--port is set by the arbiter", 'command = ["vllm", "serve", "M"]'),
    ("its other spelling", *_vllm(command='"vllm", "serve", "M", "--gpu_memory_utilization=0.9"'), 5, "backends.vllm.command", "--gpu-memory-utilization is set", "memory in the mode"),
    ("owned when the key is set", *_vllm("max_num_seqs = 4", command='"vllm", "serve", "M", "--max-num-seqs=9"'), 5, "backends.vllm.command", "--max-num-seqs is set", "set max_num_seqs"),
    ("env before the program", *_vllm(command='"env", "CUDA_VISIBLE_DEVICES=1", "vllm", "serve", "M"'), 5, "backends.vllm.command", "CUDA_VISIBLE_DEVICES is set by the arbiter", "write gpu = 1 in the mode"),
    ("no table", 'mode = "A"', 'mode = "A"\ngateway = "on"', 2, "gateway", "'on' is not accepted", "as a table: [gateway]"),
    ("gpus in quotes", A_VLLM, 'vllm = { gpu = "0,1", memory = "5%" }', 10, "modes.A.vllm.gpu", "names no GPU", "write gpu = [0,1]"),
    ("no model", *_vllm(command='"vllm", "serve"'), 5, "backends.vllm.command", "names no model", '"MODEL"'),
    ("docker", *_vllm(command='"docker", "run", "--rm", "img:1", "--x"'), 5, "backends.vllm.command", "docker cannot be the command", 'image = "img:1", container = "docker", command = ["--x"]'),
    ("a path that climbs", *_vllm('allow_admin_paths = ["/v1/../x"]'), 5, "backends.vllm.allow_admin_paths", "is no path", "/v1/responses/*"),
    ("a star within a path", *_vllm('allow_admin_paths = ["/v1/*/x"]'), 5, "backends.vllm.allow_admin_paths", "is no path", "/v1/responses/*"),
    ("a host with its port", 'mode = "A"', 'mode = "A"\ngateway.hosts = ["https://LLM.example.com:443/x"]', 2, "gateway.hosts", "is no host name", '"LLM.example.com"'),
    ("a host that is none", 'mode = "A"', 'mode = "A"\ngateway.hosts = ["a b"]', 2, "gateway.hosts", "is no host name", "llm.example.com"),
    ("an origin without scheme", 'mode = "A"', 'mode = "A"\ngateway.cors = ["app.example.com"]', 2, "gateway.cors", "is no origin", '"https://app.example.com"'),
    ("a router by its name", 'mode = "A"', 'mode = "A"\ngateway.trusted_proxies = ["router.example"]', 2, "gateway.trusted_proxies", "invalid address or network 'router.example'", "10.0.0.0/24"),
    ("a bare limit of bodies", 'mode = "A"', 'mode = "A"\ngateway.max_body = 1000000', 2, "gateway.max_body", "has no unit", "512MiB"),
    ("a path with a space", *_vllm('allow_admin_paths = ["/a b"]'), 5, "backends.vllm.allow_admin_paths", "is no path", "/metrics"),
    ("no address", END, END + '[gateway]\nbind = "lan"\n', 18, "gateway.bind", "is no IP address", "127.0.0.1"),
    ("an image without a model", VLLM, 'vllm = { image = "img:1.0" }', 5, "backends.vllm", "has no command", "write command"),
    ("an image that tells no version", VLLM, 'vllm = { image = "reg:5000/vllm:latest", models = ["M"] }', 5, "backends.vllm.version", "the tag of reg:5000/vllm:latest does not tell it", 'write version = "0.30.0"'),
    ("a digest tells none either", OLLAMA, 'ollama = { image = "ollama/ollama@sha256:12.34" }', 6, "backends.ollama.version", "cannot be found out", 'write version = "0.33.0"'),
    ("no image name", OLLAMA, 'ollama = { image = "--privileged x", version = "0.33.0" }', 6, "backends.ollama.image", "is no image name", "ollama/ollama:0.33.0"),
    ("no client", OLLAMA, 'ollama = { image = "o:0.33", container = "lxc" }', 6, "backends.ollama.container", "'lxc'", "podman"),
    ("a client without an image", *_vllm('container = "podman"'), 5, "backends.vllm.container", "is for images only", "write image"),
    ("volumes without an image", *_vllm('volumes = ["/a:/b"]'), 5, "backends.vllm.volumes", "is for images only", "write image"),
    ("a volume that is none", OLLAMA, 'ollama = { image = "o:0.33", volumes = ["models:root"] }', 6, "backends.ollama.volumes", "'models:root' is no volume", '":ro"'),
    ("a flag of ours for an image", VLLM, 'vllm = { image = "v:0.30", command = ["--model", "M", "--port", "9"] }', 5, "backends.vllm.command", "--port is set by the arbiter", 'command = ["--model", "M"]'),
    ("an image's bad variable", OLLAMA, 'ollama = { image = "o:0.33", env = { "A B" = "1" } }', 6, "backends.ollama.env", "'A B' is no variable's name", "A-Z"),
    ("an image's bad user", OLLAMA, 'ollama = { image = "o:0.33", user = "--x" }', 6, "backends.ollama.user", "is no user within a container", "UID:GID"),
    ("a run line", *_vllm(command='"sudo", "podman", "run", "-p8001:8000", "-e", "A=b", "-eHF_TOKEN=s", "v:1", "--model", "M"'), 5, "backends.vllm.command", "podman cannot be the command", 'image = "v:1", container = "podman", command = ["--model", "M"], env = { A = "b" }, env_file = "/etc/gpu-arbiter.env", port = 8001; put HF_TOKEN into env_file'),
    ("a port twice", *_vllm("port = 8501"), 5, "backends.vllm.port", "port 8501 is used by backends.tensorflow.port", "another port"),
    ("the daemon's port", *_vllm("port = 9480"), 5, "backends.vllm.port", "arbiter.listen", "another port"),
    ("no port at all", *_vllm("port = 70000"), 5, "backends.vllm.port", "70000 is not accepted", "65535"),
    ("generic without health", OLLAMA, 'x = { kind = "generic", command = ["x"], port = 9 }', 6, "backends.x.health", "a generic backend needs one", "/path"),
    ("models of another form", OLLAMA, 'ollama = { models = "qwen2.5:3b" }', 6, "backends.ollama.models", "is no list of models", '["NAME", ...]'),
    ("a relative model path", TF, 'tensorflow = { models = { a = "models/a" } }', 4, "backends.tensorflow.models.a", "is no absolute path", "in full"),
    ("failover to nobody", END, END + '[[failover]]\nmodel = "Qwen/Qwen2.5-3B-Instruct"\nfrom = "vllm"\nto = "olama"\nsource = "q"\n', 20, "failover.0.to", "unknown backend 'olama'", "did you mean 'ollama'?"),
    ("failover of another model", END, END + '[[failover]]\nmodel = "other"\nfrom = "vllm"\nto = "ollama"\nsource = "q"\n', 18, "failover.0.model", "vllm serves 'Qwen/Qwen2.5-3B-Instruct'", "model ="),
    ("failover without source", END, END + '[[failover]]\nmodel = "Qwen/Qwen2.5-3B-Instruct"\nfrom = "vllm"\nto = "ollama"\n', 17, "failover.0.source", "is missing", "qwen2.5:3b"),
    ("degrade to nobody", END, END + '[[degrade]]\nfrom = "tensorflow"\nadvice = "x"\nto = ["vlm"]\n', 20, "degrade.0.to", "unknown backend 'vlm'", "did you mean 'vllm'?"),
    ("a listen address", END, END + '[arbiter]\nlisten = "9480"\n', 18, "arbiter.listen", "is no address", "HOST:PORT"),
    ("a poll out of range", END, END + '[arbiter]\npoll = "1ms"\n', 18, "arbiter.poll", "out of range", "50ms"),
    ("a relative folder", END, END + '[arbiter]\nstate_dir = "x"\n', 18, "arbiter.state_dir", "no absolute path", "begins with /"),
    ("a socket path too long", END, END + f'[arbiter]\nruntime_dir = "/{"x" * 100}"\n', 18, "arbiter.runtime_dir", "too long", "at most 107"),
    ("a word for a choice", END, END + '[arbiter]\nlog = "loud"\n', 18, "arbiter.log", "'loud' is not accepted", "journal"),
    ("a word for a switch", END, END + '[arbiter]\ndry_run = "perhaps"\n', 18, "arbiter.dry_run", "'perhaps' is not accepted", "true or false"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "wrong", "right"),
    [case[1:] for case in BROKEN],
    ids=[case[0] for case in BROKEN],
)
def test_each_broken_file_has_its_message(
    tmp_path: Path, old: str, new: str, line: int, key: str, wrong: str, right: str
) -> None:
    """Exactly this key is blamed, at its line, with what would be right."""
    assert old in FIFTEEN
    found = _problems(tmp_path, FIFTEEN.replace(old, new, 1))
    mine = [p for p in found if p.key == key]
    assert mine, [str(p) for p in found]
    assert wrong in mine[0].wrong
    assert right in mine[0].right
    assert mine[0].line == line, str(mine[0])


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """Five mistakes in five places: five problems, in the order of the file."""
    text = FIFTEEN.replace('mode = "A"', 'mode = "Z"').replace('"55%"', "55")
    text = text.replace("models = [", "modles = [").replace("max_model_len = 8192", "port = 0")
    found = _problems(tmp_path, text + "[arbiter]\nhedroom = 1\n")
    keys = [p.key for p in found]
    assert keys == sorted(keys, key=lambda key: next(p.line for p in found if p.key == key))
    assert {
        "mode",
        "backends.ollama.modles",
        "modes.A.vllm.memory",
        "modes.B.vllm.port",
        "arbiter.hedroom",
    } <= set(keys)


def test_a_problem_is_one_line_with_file_line_and_key(tmp_path: Path) -> None:
    """FILE:LINE: key.path: what is wrong; what would be right."""
    found = _problems(tmp_path, FIFTEEN.replace('"55%"', "55"))
    assert str(found[0]) == (
        f"{tmp_path}/bad.toml:10: modes.A.vllm.memory: 55 has no unit; "
        'write "55%" or a size like "12GiB"'
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [('mode = "A', 1), ("mode = A\n", 1), ('mode = "A"\n[backends\n', 2), ("a = 1\na = 2\n", 2)],
)
def test_what_is_no_toml_says_where(tmp_path: Path, text: str, line: int) -> None:
    """The line of the syntax error."""
    found = _problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].line == line


def test_a_file_that_is_not_there_is_a_problem_too(tmp_path: Path) -> None:
    """No traceback, and what to do."""
    with pytest.raises(ConfigRefused, match="there is no such file"):
        load(tmp_path / "none.toml", {})


def test_a_bad_value_of_the_environment_names_the_variable(tmp_path: Path) -> None:
    """Not a line of the file, which is innocent."""
    path = tmp_path / "f.toml"
    path.write_text(FIFTEEN)
    with pytest.raises(ConfigRefused) as refused:
        load(path, {"GPU_ARBITER_ARBITER__POLL": "250"})
    assert str(refused.value.problems[0]).startswith(
        "environment GPU_ARBITER_ARBITER__POLL:0: arbiter.poll:"
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("x = " + "[" * 20_000 + "]" * 20_000, "nested too deeply"),
        ("x = " + "{ a = " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("[" + ".".join(["a"] * 5000) + "]\n", "unknown key 'a'"),
        ("".join(f"key{n} = 1\n" for n in range(20_000)), "unknown key"),
    ],
    ids=["lists", "inline", "tables", "keys"],
)
def test_a_file_that_is_made_to_cost_time_is_refused_like_any_other(
    data: str, says: str, tmp_path: Path
) -> None:
    """No RecursionError, and no work that grows with the square of its length."""
    path = tmp_path / "gpu-arbiter.toml"
    path.write_text(data)
    with pytest.raises(ConfigRefused) as refused:
        load(path, {})
    assert 1 <= len(refused.value.problems) <= MOST_TOLD
    assert any(says in str(one) for one in refused.value.problems)
