"""Which device is used, what is said of one that cannot be, and what room there is on it."""

from __future__ import annotations

import pytest
import torch

from engine.tiny import tiny_model
from fake_device import FakePinning, fake_streams
from pagoda import LLM, devices
from pagoda.cache.transfers import cuda
from pagoda.cache.transfers.host import HostTransfers
from pagoda.config import EngineConfig
from pagoda.devices import check_alive, check_gpu, find_device, room_on
from pagoda.engine import pools
from pagoda.engine.pools import check_device, machine_facts
from pagoda.errors import ConfigError, DeviceLostError, DeviceUnavailableError
from pagoda.planning.memory import plan_memory

GIB = 1 << 30


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of torch's, as far as questions about it go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (60 * GIB, 80 * GIB))
    monkeypatch.setattr(devices, "find_spec", lambda _: object())
    return torch.device("cuda", 0)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class OnCard:
    """A model of which only the facts are asked, on a GPU."""

    def __init__(self) -> None:
        model = tiny_model()
        self.network, self.facts, self.dtype, self.vocab_size = model.network, model.facts, model.dtype, 200
        self.device = torch.device("cuda", 0)


def test_without_a_gpu_the_processor_computes(no_gpu):
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceUnavailableError, match="choose device=cpu"):
        find_device("cuda")
    with pytest.raises(DeviceUnavailableError, match="device=cpu"):
        LLM(device="cuda")


def test_a_gpu_is_taken_unless_it_is_refused(gpu):
    assert find_device("auto") == find_device("cuda") == gpu
    assert find_device("cpu") == torch.device("cpu")


def test_an_old_card_is_refused_by_name(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    with pytest.raises(DeviceUnavailableError, match=r"a card has compute capability 7\.5 and 8\.0 is needed"):
        check_gpu()
    assert find_device("auto") == torch.device("cpu")


def test_a_gpu_without_triton_is_not_used(gpu, monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda _: None)
    with pytest.raises(DeviceUnavailableError, match=r"pagoda-kv\[gpu\]"):
        find_device("cuda")


def test_a_device_by_another_name_is_no_device():
    with pytest.raises(ConfigError, match="device is 'gpu'; choose one of: auto, cpu, cuda"):
        EngineConfig(device="gpu")
    for share in (0, 1.5, "much", None):
        with pytest.raises(ConfigError, match="gpu_memory_utilization"):
            EngineConfig(gpu_memory_utilization=share)


def test_room_counts_what_others_have_taken(gpu):
    assert room_on(gpu, 0.9) == int(80 * GIB * 0.9) - 20 * GIB


def test_pages_get_what_weights_and_a_step_leave(gpu, monkeypatch):
    config = EngineConfig(max_model_len=256)
    room = pools.KEPT_NBYTES + (32 << 20)
    monkeypatch.setattr(pools, "room_on", lambda *_: room)
    facts = machine_facts(OnCard(), config)
    assert 0 < facts.pages_nbytes < 32 << 20
    memory = plan_memory(OnCard().facts, facts, config)
    assert facts.pages_nbytes * 0.9 < memory.nbytes <= facts.pages_nbytes
    assert machine_facts(OnCard(), EngineConfig(kv_cache_memory_bytes=1 << 20)).pages_nbytes is None


def test_a_full_card_is_refused_with_what_to_do(gpu, monkeypatch):
    monkeypatch.setattr(pools, "room_on", lambda *_: pools.KEPT_NBYTES)
    with pytest.raises(DeviceUnavailableError, match="too few for pages beside the weights; raise gpu_memory_util"):
        machine_facts(OnCard(), EngineConfig())


@pytest.mark.parametrize("tier", [{"kv_host_bytes": 1 << 20}, {"kv_disk": "here"}, {"kv_remote": "redis://there"}])
def test_pages_on_a_gpu_have_tiers(tier):
    check_device(OnCard(), EngineConfig(**tier))


def test_pages_on_a_gpu_are_read_in_part():
    check_device(OnCard(), EngineConfig(sparse_attention="quest:tokens=64"))


def test_host_memory_below_a_gpu_is_pinned_at_the_start_or_refused(gpu, monkeypatch):
    pinning = FakePinning(most_nbytes=3 << 26)
    monkeypatch.setattr(cuda, "CudaPinning", lambda _: pinning)
    monkeypatch.setattr(cuda, "cuda_streams", lambda _: fake_streams())
    pool = pools.transfers_on(gpu, 100 << 20)(torch.zeros(2, 64, dtype=torch.uint8))
    assert sum(pinning.pinned.values()) == 128 << 20
    assert pool.memory(1000).nbytes == 1000
    with pytest.raises(
        ConfigError, match="kv_host_bytes is 268435456, which cannot be pinned: too much is pinned; lower"
    ):
        pools.transfers_on(gpu, 256 << 20)
    monkeypatch.setattr(pools, "available_memory_nbytes", lambda: 1 << 20)
    with pytest.raises(ConfigError, match="this machine has 1048576 bytes to spare; lower it"):
        pools.transfers_on(gpu, 2 << 20)
    assert pools.transfers_on(torch.device("cpu"), 1 << 50) is HostTransfers


def test_native_kernels_keep_the_processor(gpu, monkeypatch, caplog):
    pytest.importorskip("pagoda.kernels._native")
    monkeypatch.setenv("PAGODA_KERNELS", "native")
    with LLM(device="auto", kv_cache_memory_bytes=8 << 20) as llm:
        assert llm.engine.model.device.type == "cpu"
    assert "Running on the processor" in caplog.text
    with pytest.raises(ConfigError, match="which is for processors"):
        LLM(device="cuda")


def test_a_lost_device_is_told_from_a_step_that_failed(gpu, monkeypatch):
    cause = RuntimeError("no room")
    check_alive(torch.device("cpu"), cause)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    check_alive(gpu, cause)

    def lost(*_):
        raise RuntimeError("CUDA error: unspecified launch failure\nand more")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(DeviceLostError, match=r"stopped in the middle of a step \(CUDA error: unspecified launch fai"):
        check_alive(gpu, cause)


def test_a_model_stays_where_it_lies():
    with pytest.raises(ConfigError, match="the model that was given lies on the processor"):
        LLM(tiny_model(), skip_tokenizer_init=True, device="cuda")
