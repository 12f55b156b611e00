"""What was measured of models, kept in files: the next load of the same weights needs no run.

Knows files and digests. A file that cannot be read is as none, one that cannot be written is left out.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pagoda.coded.layers import coded_weights
from pagoda.formats.rotation import PairRotation
from pagoda.layouts.spec import SiteSlot
from pagoda.models.calibration import KeyStatistics
from pagoda.models.model import Model

logger = logging.getLogger(__name__)

VERSION = 2  # of what is measured and how it is written
SAMPLED = 256  # numbers of each weight


@dataclass
class Measured:
    """The statistics of keys, and the losses of formats by their names and constants."""

    statistics: dict[SiteSlot, KeyStatistics]
    losses: dict[str, float] = field(default_factory=dict)


class FitStore:
    """A folder of files, or none at all."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, key: str) -> Measured | None:
        if self._folder is None:
            return None
        from safetensors import safe_open

        try:
            with safe_open(self._file(key), framework="pt") as file:
                notes = file.metadata()
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sites = [(SiteSlot(*where), is_explained) for *where, is_explained in json.loads(notes["sites"])]
            statistics = {site: _statistics(found, site, is_explained) for site, is_explained in sites}
            return Measured(statistics, json.loads(notes["losses"]))
        except FileNotFoundError:
            return None
        except Exception as error:
            logger.warning("%s cannot be read and is measured again: %s", self._file(key), error)
            return None

    def write(self, key: str, measured: Measured) -> None:
        if self._folder is None:
            return
        from safetensors.torch import save

        sites = [(site.group, site.layer, site.writes, each.is_explained) for site, each in measured.statistics.items()]
        notes = {"sites": json.dumps(sites), "losses": json.dumps(measured.losses)}
        tensors = {
            _name(site, name): tensor.contiguous()
            for site, each in measured.statistics.items()
            for name, tensor in _tensors(each).items()
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self._folder) as folder:
                whole = Path(folder) / "whole"
                whole.write_bytes(save(tensors, notes))
                whole.replace(self._file(key))
        except OSError as error:
            logger.info("What was measured of the model is not kept: %s", error)

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / f"fit-{key}.safetensors"


def key_of(model: Model, token_ids: torch.Tensor) -> str:
    """Tells weights and texts apart: names, shapes and a sample of every weight and buffer, and the tokens."""
    digest = blake2b(f"{VERSION} {model.dtype}".encode(), digest_size=16)
    for name, weight in (*model.network.named_parameters(), *model.network.named_buffers()):
        numbers = weight.detach().flatten()
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(numbers[:: max(1, len(numbers) // SAMPLED)].float().cpu().numpy().tobytes())
    for name, coded in coded_weights(model.network).items():
        codes = coded.stored.flatten()
        digest.update(f"{name} {coded.rows} {coded.depth} {coded.type_name}".encode())
        digest.update(codes[:: max(1, len(codes) // SAMPLED)].numpy().tobytes())
    digest.update(token_ids.numpy().tobytes())
    return digest.hexdigest()


def _name(site: SiteSlot, name: str) -> str:
    return f"{site.group}.{site.layer}.{name}"


def _tensors(statistics: KeyStatistics) -> dict[str, torch.Tensor]:
    return {
        "channels": statistics.rotation.channels,
        "frequencies": statistics.rotation.frequencies,
        "means": statistics.means,
        "variances": statistics.variances,
        "query_squares": statistics.query_squares,
    }


def _statistics(found: dict[str, torch.Tensor], site: SiteSlot, is_explained: bool) -> KeyStatistics:
    channels, frequencies, means, variances, query_squares = (
        found[_name(site, name)] for name in ("channels", "frequencies", "means", "variances", "query_squares")
    )
    return KeyStatistics(PairRotation(channels, frequencies), means, variances, query_squares, is_explained)
