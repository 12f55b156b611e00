"""Steps of decoding padded to more sequences: rows of those that are there are the same, and no other is kept."""

from __future__ import annotations

import torch

from engine.tiny import tiny_model
from pagoda.formats.page import page_geometries
from pagoda.formats.plain import own_format
from pagoda.kernels.base import GroupView
from pagoda.kernels.recording import RecordedStep, StepRecorder
from pagoda.kernels.reference import ReferenceKernels
from pagoda.models.attention import PagedStep
from pagoda.models.replay import DecodeSteps
from pagoda.models.sites import bind_sites

SIZE = 4


class Again(RecordedStep):
    """Runs the step once more, with other numbers in the tables it was made for."""

    def __init__(self, step, inputs, view):
        self._step, self._view = step, view
        self.inputs, self.nbytes, self.num_replays = inputs, 0, 0
        self.result = step(*inputs)

    def takes(self, views):
        return len(views[0].page_indices) <= len(self._view.page_indices)

    def replay(self, inputs, views, finite):
        self.num_replays += 1
        for name in ("page_indices", "page_starts", "query_starts", "context_lengths"):
            numbers = getattr(views[0], name)
            getattr(self._view, name)[: len(numbers)].copy_(numbers)
        return self._step(*inputs)


class Padding(StepRecorder):
    runs_before = 0

    def __init__(self):
        self.recorded = []

    def size_for(self, num_sequences):
        return -(-num_sequences // SIZE) * SIZE

    def record(self, step, inputs, views, finite):
        self.recorded.append(Again(step, inputs, views[0]))
        return self.recorded[-1]


class Kernels(ReferenceKernels):
    def __init__(self):
        self._recorder = Padding()

    @property
    def recorder(self):
        return self._recorder


def table(*values):
    return torch.tensor(values, dtype=torch.int32)


class Set:
    """Two layers of Llama over pages of zeros, in which sequences are as long as they say."""

    def __init__(self):
        self.model, self.kernels = tiny_model(), Kernels()
        geometries = page_geometries(self.model.spec, own_format(torch.float32), 16)
        self.pages = [torch.zeros(16, each.page_nbytes, dtype=torch.uint8) for each in geometries]
        self.sites = bind_sites(self.model.discovered, self.kernels, geometries, self.pages, {}).sites

    def step(self, lengths):
        count = len(lengths)
        starts = table(*range(count + 1))
        view = GroupView(table(*range(count)), starts, starts, table(*lengths))
        return PagedStep(self.kernels, self.sites, (view,))

    def inputs(self, lengths):
        count = len(lengths)
        return torch.arange(3, 3 + count), torch.tensor(lengths) - 1, torch.arange(count)


def test_padded_rows_change_nothing():
    lengths = [4, 9, 1]
    plain, padded = Set(), Set()
    expected = plain.model.forward(*plain.inputs(lengths), plain.step(lengths))
    steps, step = DecodeSteps(padded.model, padded.kernels), padded.step(lengths)
    logits = steps.forward(*padded.inputs(lengths), step)
    # Products of more rows may add up in another order.
    torch.testing.assert_close(logits, expected)
    assert step.finite.tolist() == [1, 1, 1]
    torch.testing.assert_close(padded.pages[0].view(torch.float32), plain.pages[0].view(torch.float32))
    (recorded,) = padded.kernels.recorder.recorded
    assert [len(each) for each in recorded.inputs] == [SIZE, SIZE, SIZE]


def test_what_is_not_finite_is_told_of_the_sequence_that_has_it():
    padded, lengths = Set(), [4, 9, 1]
    embedding = padded.model.network.get_input_embeddings().weight
    with torch.no_grad():
        embedding[4] = torch.nan
    step = padded.step(lengths)
    DecodeSteps(padded.model, padded.kernels).forward(*padded.inputs(lengths), step)
    assert step.finite.tolist() == [1, 0, 1]


def test_recordings_are_made_anew_where_pages_outgrow_them():
    padded = Set()
    steps = DecodeSteps(padded.model, padded.kernels)
    for lengths in ([4, 9], [5, 10], [6, 11, 2], [7, 12]):
        steps.forward(*padded.inputs(lengths), padded.step(lengths))
    first, second = padded.kernels.recorder.recorded
    assert first.num_replays == 1, "to prove it"
    assert second.num_replays == 1
