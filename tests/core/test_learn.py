"""What an OOM teaches: its class, what is done about it, and caps that come down and go back."""

from __future__ import annotations

from dataclasses import replace

from arbiterd.core.limits import CAP_CALM_S, CAP_FLOOR_FRACTION
from arbiterd.core.memory import learn
from arbiterd.engines.base import CauseClass
from arbiterd.model.actions import StartBackend, Verb
from arbiterd.model.backend import Phase
from arbiterd.model.events import EventName
from arbiterd.model.gateway import Requests
from arbiterd.model.launch import Exit
from arbiterd.model.settings import Settings
from arbiterd.quantities import GIB, MIB
from tests.core.world import OLLAMA, VLLM, World, settings

GPU = "GPU-0"
TORCH = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    "capacity of 23.61 GiB of which 118.00 MiB is free."
)


def cap(world: World, name: str) -> int:
    """The cap in force."""
    return world.view(name).cap_bytes


def cause(world: World, name: str) -> CauseClass:
    """The class of the last failure."""
    found = world.state.backends[name].history.cause
    assert found is not None
    return found.cause


def kill_by_oom(world: World, name: str, *words: str, over: int = 0) -> None:
    """It dies of an OOM, after a moment in which it held so much more than its cap."""
    engine = world.engines[name]
    engine.held = cap(world, name) + over
    world.tick(2)
    if world.engines.get(name) is engine and engine.alive:
        world.die(name, Exit(code=1), *words)
        engine.held = 0
    world.until(name, Phase.BACKOFF, Phase.WAITING, Phase.STARTING, Phase.FAILED)


def with_vllm(**over: object) -> Settings:
    """The three, vLLM changed."""
    given = settings()
    mode = given.modes["A"]
    vllm = replace(VLLM, **over)  # type: ignore[arg-type]
    return replace(given, modes={"A": replace(mode, backends={**mode.backends, "vllm": vllm})})


def test_the_device_full_by_its_own_growth_lowers_the_cap_at_the_next_start() -> None:
    """By max(5 %, 512 MiB); the engine is told so by its own flag; shown as learned."""
    world = World(settings()).up()
    before = cap(world, "vllm")
    argv = next(a for a in world.ordered if isinstance(a, StartBackend) and a.backend == "vllm")
    kill_by_oom(world, "vllm", TORCH)
    assert cause(world, "vllm") is CauseClass.DEVICE_FULL
    assert world.told(EventName.CAP_LOWERED, "vllm") == 1
    world.until("vllm", Phase.READY)
    assert before - cap(world, "vllm") == max(before // 20, 512 * MIB)
    again = [a for a in world.ordered if isinstance(a, StartBackend) and a.backend == "vllm"][-1]
    assert again.spec.argv != argv.spec.argv
    assert world.view("vllm").learned_bytes == before - cap(world, "vllm")
    assert world.decision is not None
    (entry,) = world.decision.learned.values()
    assert (entry.mode, entry.backend, entry.gpu, entry.ooms) == ("A", "vllm", GPU, 1)


def test_a_cap_never_falls_below_its_floor() -> None:
    """Seven tenths of what was configured, however often."""
    world = World(settings()).up()
    configured = cap(world, "vllm")
    for _ in range(9):
        kill_by_oom(world, "vllm", TORCH)
        world.ask(Verb.RESUME, "vllm")
        world.until("vllm", Phase.READY, ticks=2000)
    assert cap(world, "vllm") == int(configured * CAP_FLOOR_FRACTION)


def test_a_neighbours_doing_lowers_nothing() -> None:
    """A stranger had filled the card: the same words, another class."""
    world = World(settings()).up()
    before = cap(world, "vllm")
    free = 24 * GIB - 400 * MIB - world.used(GPU)
    world.strangers[7] = (GPU, free - 20 * MIB)
    world.tick()
    words = TORCH.replace("Tried to allocate 2.00 GiB", "Tried to allocate 20.00 MiB")
    world.die("vllm", Exit(code=1), words)
    world.engines["vllm"].held = 0
    world.tick(3)
    assert cause(world, "vllm") is CauseClass.NEIGHBOUR
    found = world.state.backends["vllm"].history.cause
    assert found is not None
    assert "strangers held" in found.summary
    assert cap(world, "vllm") == before
    assert world.told(EventName.CAP_LOWERED) == 0


def test_room_on_the_device_lowers_nothing() -> None:
    """The words say out of memory, the card had gigabytes free: nobody knows; the cap stays."""
    world = World(settings()).up()
    before = cap(world, "vllm")
    world.die("vllm", Exit(code=1), "CUDA out of memory. Tried to allocate 20.00 MiB.")
    world.engines["vllm"].held = 0
    world.tick(3)
    assert cause(world, "vllm") is CauseClass.OOM_RUNTIME
    assert cap(world, "vllm") == before


def test_host_memory_is_not_the_cards() -> None:
    """The kernel's OOM killer: the unit says so."""
    world = World(settings()).up()
    world.host_oom.add("vllm")
    world.die("vllm", Exit(signal=9))
    world.engines["vllm"].held = 0
    world.tick(3)
    assert cause(world, "vllm") is CauseClass.HOST_RAM
    assert world.told(EventName.CAP_LOWERED) == 0


def test_every_class_of_oom_has_its_mitigation() -> None:
    """A sentence each, said with the event."""
    classes = {
        CauseClass.NOT_ENOUGH_FREE,
        CauseClass.BUDGET_TOO_SMALL,
        CauseClass.OOM_START,
        CauseClass.OOM_RUNTIME,
        CauseClass.DEVICE_FULL,
        CauseClass.NEIGHBOUR,
        CauseClass.POOL_FULL,
        CauseClass.HOST_RAM,
    }
    assert classes <= set(learn.MITIGATION)


def test_a_full_pool_means_fewer_requests_not_a_lower_cap() -> None:
    """TensorFlow Serving answers 429 and stays up: throttled, then let go again."""
    world = World(settings()).up()
    before = cap(world, "tensorflow")
    for count in (0, 3, 5):
        world.codes["tensorflow"] = Requests(codes={"429": count})
        world.tick()
    assert world.door("tensorflow").max_in_flight == 4
    assert world.told(EventName.THROTTLE, "tensorflow") == 1
    assert cap(world, "tensorflow") == before
    world.tick(80)
    assert world.door("tensorflow").max_in_flight == 8
    assert world.told(EventName.UNTHROTTLE, "tensorflow") == 1


def test_reset_gives_the_cap_back_by_one_command() -> None:
    """arbiterctl caps reset vllm."""
    world = World(settings()).up()
    before = cap(world, "vllm")
    kill_by_oom(world, "vllm", TORCH)
    world.until("vllm", Phase.READY)
    world.ask(Verb.RESET_CAP, "vllm")
    world.tick(2)
    assert cap(world, "vllm") == before
    assert world.decision is not None
    assert not world.decision.learned
    assert world.phase("vllm") is Phase.READY  # it restarts nothing


def test_half_a_step_comes_back_at_a_natural_restart_after_a_calm_day() -> None:
    """Not before a day, not without a restart."""
    world = World(settings()).up()
    before = cap(world, "vllm")
    kill_by_oom(world, "vllm", TORCH)
    world.until("vllm", Phase.READY)
    lowered = before - cap(world, "vllm")
    world.now += CAP_CALM_S + 60
    world.tick(8)
    assert before - cap(world, "vllm") == lowered
    world.ask(Verb.RESTART, "vllm")
    world.until("vllm", Phase.STARTING)
    world.until("vllm", Phase.READY)
    assert before - cap(world, "vllm") == lowered - lowered // 2
    assert world.told(EventName.CAP_RESTORED, "vllm") == 1


def test_learned_caps_are_of_one_mode_model_gpu_and_version() -> None:
    """Another model starts with what was configured."""
    world = World(settings()).up()
    before = cap(world, "vllm")
    kill_by_oom(world, "vllm", TORCH)
    world.until("vllm", Phase.READY)
    world.settings = with_vllm(command=("vllm", "serve", "N"))
    world.tick()
    assert cap(world, "vllm") == before


def test_on_oom_stop_ends_it_at_the_second() -> None:
    """on_oom = "stop": a repeated OOM of its own."""
    world = World(with_vllm(on_oom="stop")).up()
    kill_by_oom(world, "vllm", TORCH)
    world.until("vllm", Phase.READY)
    kill_by_oom(world, "vllm", TORCH)
    world.until("vllm", Phase.FAILED)
    world.tick(500, dt=2.0)
    assert world.phase("vllm") is Phase.FAILED


def test_on_oom_cpu_moves_ollama_off_the_card() -> None:
    """on_oom = "cpu": a second OOM of its own, and the next start has no GPU."""
    given = settings()
    mode = given.modes["A"]
    ollama = replace(OLLAMA, on_oom="cpu")
    made = replace(given, modes={"A": replace(mode, backends={**mode.backends, "ollama": ollama})})
    world = World(made).up()
    words = "CUDA error: out of memory, of which 10.00 MiB is free, Tried to allocate 1.00 GiB"
    for _ in range(2):
        kill_by_oom(world, "ollama", words)
        world.until("ollama", Phase.READY)
        world.tick(4)
    assert world.view("ollama").devices == ()
    start = [a for a in world.ordered if isinstance(a, StartBackend) and a.backend == "ollama"][-1]
    assert start.spec.env["CUDA_VISIBLE_DEVICES"] == ""
