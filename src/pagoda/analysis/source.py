"""Where the facts of a model come from: a folder, a config.json, or a configuration that comes with the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pagoda.analysis.catalog import Shape, find_shape
from pagoda.checkpoint.configuration import read_config
from pagoda.checkpoint.directory import checkpoint_directory, gguf_file, model_name
from pagoda.checkpoint.failures import model_errors
from pagoda.checkpoint.files import read_object
from pagoda.config import DTYPES
from pagoda.errors import ConfigError, UnsupportedModelError
from pagoda.planning.checkpoint import USUAL_DTYPE, StoredWeights, facts_and_weights, facts_from_config, stated_dtype
from pagoda.planning.contradictions import check_sizes
from pagoda.planning.facts import MachineFacts, ModelFacts
from pagoda.planning.known_families import KNOWN_FAMILIES, SAME_AS
from pagoda.planning.text_config import quantization as quantization_of
from pagoda.planning.text_config import text_config
from pagoda.planning.weights.coded import ReadBytes, coded_nbytes
from pagoda.planning.weights.count import WeightCount
from pagoda.planning.weights.families import count_weights

# What every configuration says in one of these names.
NEEDED = {
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers", "layer_types", "layers_block_type"),
    "hidden_size": ("n_embd", "d_model"),
    "vocab_size": (),
}
# What it says if any layer attends.
NEEDED_TO_ATTEND = {"num_attention_heads": ("n_head", "num_heads", "n_heads", "attention_heads")}
WITHOUT_HEADS = ("falcon_mamba", "mamba", "mamba2")
ENGINE_RUNS = "The engine itself runs bf16, fp16 and fp32."
NOT_TRIED_ON_GPUS = "Products with codes have not run on a GPU yet."
UNSAID_DTYPE = (
    f"config.json states no dtype: weights and pages count in {USUAL_DTYPE}, as transformers takes it; give --dtype."
)
AS_PUBLISHED = "as published"
OTHER_PARTS = ("vision_config", "audio_config", "vision_tower_config")


@dataclass(frozen=True)
class Described:
    """A model as far as files tell. `count` is None of a family whose weights are not counted.

    weights_are: how they are kept, if not in the precision of the facts. weights_note: what to say where the answer
    rests on their size. read: of weights in several precisions, what a step reads. is_decoded: whether weights in fewer
    bits have no codes once they are loaded. stretched_from: the facts as they are, where those that are planned with
    take a longer context.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    facts: ModelFacts
    count: WeightCount | None
    notes: tuple[str, ...] = ()
    weights_are: str = ""
    weights_note: str = ""
    read: ReadBytes | None = None
    is_gguf: bool = False
    is_decoded: bool = False
    stretched_from: ModelFacts | None = None

    @property
    def text(self) -> Mapping[str, Any]:
        """The part that generates text."""
        return text_config(self.config)

    @property
    def own_max_model_len(self) -> int | None:
        """Of the model as it is."""
        return (self.stretched_from or self.facts).max_model_len

    @property
    def weight_nbytes(self) -> int | None:
        """By what is stored, or else by what is counted."""
        if self.facts.weight_nbytes is not None or self.count is None:
            return self.facts.weight_nbytes
        return self.count.total * self.facts.number_nbytes


def describe(model: str | Path, dtype: str = "auto") -> Described:
    """The facts of `model`. Raises ModelError if there is no such model, or its configuration says too little."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r:.100}; choose one of: {', '.join(DTYPES)}.")
    path = Path(model).expanduser()
    if path.exists() and gguf_file(path) is not None:
        return _of_gguf(path, dtype)
    if path.is_dir() and any(path.glob("*.safetensors")):
        config = _checked(read_config(path), str(path / "config.json"))
        facts, stored = facts_and_weights(path, _NO_LIMIT, dtype)
        found = _described(path.resolve().name, str(path), config, facts)
        return _as_stored(found, stored) if stored.other_types or quantization_of(config) else found
    if path.is_dir() or path.is_file():
        file = path / "config.json" if path.is_dir() else path
        config = _checked(read_config(path) if path.is_dir() else read_object(path), str(file))
        name = file.resolve().parent.name if file.name == "config.json" else file.stem
        found = _described(name, str(file), config, facts_from_config(config, _NO_LIMIT, dtype))
        is_said = dtype != "auto" or stated_dtype(config) or stated_dtype(found.text)
        return found if is_said else replace(found, notes=(*found.notes, UNSAID_DTYPE))
    return _shipped(find_shape(str(model)), dtype)


def _of_gguf(path: Path, dtype: str) -> Described:
    directory = checkpoint_directory(path)
    config = _checked(read_config(directory), str(directory / "config.json"))
    facts, stored = facts_and_weights(directory, _NO_LIMIT, dtype)
    found = _described(model_name(path.resolve()), str(path), config, facts)
    types = ", ".join(stored.other_types)
    return replace(found, weights_are=f"as stored in {types}", is_gguf=True) if types else found


def _shipped(shape: Shape, dtype: str) -> Described:
    config = shape.config()
    found = _described(shape.name, shape.source, config, facts_from_config(config, _NO_LIMIT, dtype))
    left_out = (f"Left out is {shape.left_out}.",) if shape.left_out else ()
    found = replace(found, notes=(*found.notes, *left_out))
    published = shape.published
    if published is None or found.count is None or dtype != "auto":
        return found
    # Nobody publishes tables in fewer bits.
    table_nbytes = found.count.table * found.facts.number_nbytes
    return replace(
        found,
        facts=replace(found.facts, weight_nbytes=published.nbytes),
        weights_are=f"{AS_PUBLISHED} in {published.method}",
        weights_note=f"Weights count as they are published: {published.scheme}. {ENGINE_RUNS}",
        read=ReadBytes(published.nbytes - table_nbytes, published.expert_nbytes),
    )


def _as_stored(model: Described, stored: StoredWeights) -> Described:
    """Weights in fewer bits take what the engine holds of them, or else the bytes that they have in their files."""
    types = ", ".join(stored.other_types)
    if quantization_of(model.config):
        method = str(quantization_of(model.config).get("quant_method") or types or "fewer bits")
        if stored.held_codes is not None:
            kept = f"as held of {method}" if stored.held_codes else f"decoded of {method}"
            notes = (*model.notes, NOT_TRIED_ON_GPUS) if stored.held_codes else model.notes
            return replace(model, weights_are=kept, is_decoded=not stored.held_codes, notes=notes)
        kept, note, nbytes = f"as stored in {method}", f"Weights are stored in {method}", stored.nbytes
    else:
        kept, note = f"with tensors in {types}", f"Some tensors are stored in {types}"
        nbytes = (model.facts.weight_nbytes or 0) + stored.other_nbytes
    return replace(
        model,
        facts=replace(model.facts, weight_nbytes=nbytes),
        weights_are=kept,
        weights_note=f"{note} and count as they are stored. {ENGINE_RUNS}",
    )


def quantized(model: Described, quantization: str) -> Described:
    """`model` with weights rounded to codes when they are loaded. Raises ConfigError if nobody knows what they take."""
    if quantization == "none":
        return model
    if _has_codes(model):
        note = f"{model.name} has codes already, which --quantization leaves as they are."
        return replace(model, notes=(*model.notes, note))
    if model.count is None:
        raise ConfigError(
            f"The weights of {model.text.get('model_type')} are not counted, so that nobody knows what {quantization} "
            "makes of them; say it, as in --weights 4GiB, and leave out quantization."
        )
    nbytes, read = coded_nbytes(model.count, quantization, model.facts.number_nbytes)
    return replace(
        model,
        facts=replace(model.facts, weight_nbytes=nbytes),
        weights_are=f"rounded to {quantization}",
        weights_note="",
        read=read,
        notes=(*model.notes, NOT_TRIED_ON_GPUS),
    )


def _has_codes(model: Described) -> bool:
    """Whether weights stay as they are stored; what is decoded when it is loaded can be rounded again."""
    scheme = quantization_of(model.config)
    is_decoded = model.is_decoded or scheme.get("quant_method") == "fp8" or scheme.get("load_in_4bit")
    return model.is_gguf or bool(scheme and not is_decoded and not model.weights_are.startswith(AS_PUBLISHED))


def stretched(model: Described, context: int | None, is_endless: bool) -> Described:
    """`model` as if it took `context` tokens: asked about a longer one than it takes, a plan answers, and says so.

    If sequences are endless the engine takes them, too.
    """
    most = model.facts.most_model_len
    if context is None or most is None or context <= most:
        return model
    then = (
        "of longer sequences it sees a part" if is_endless else "the engine refuses more; this plans as if it took them"
    )
    note = f"{model.name} takes at most {most:,} tokens, and {then}."
    facts = replace(model.facts, max_model_len=context, most_model_len=context)
    return replace(model, facts=facts, stretched_from=model.facts, notes=(*model.notes, note))


_NO_LIMIT = MachineFacts(None)


def _described(name: str, source: str, config: Mapping[str, Any], facts: ModelFacts) -> Described:
    with model_errors(f"The configuration {source}"):
        note = _precision_note(config, facts)
        return Described(
            name, source, config, facts, count_weights(config), tuple(_notes(config, facts)), weights_note=note
        )


def _notes(config: Mapping[str, Any], facts: ModelFacts) -> list[str]:
    notes = [*_family_notes(config)]
    others = [name.removesuffix("_config") for name in OTHER_PARTS if config.get(name)]
    if others and facts.weight_nbytes is None:
        notes.append(f"The weights of its {' and '.join(others)} part are not counted.")
    return notes


def _precision_note(config: Mapping[str, Any], facts: ModelFacts) -> str:
    """Of a configuration alone, which does not say how many bytes its scheme comes to."""
    if not quantization_of(config) or facts.weight_nbytes is not None:
        return ""
    method = quantization_of(config).get("quant_method") or "fewer bits"
    return f"Weights are published in {method}; here they count in {facts.dtype}: give --weights for others."


def _family_notes(config: Mapping[str, Any]) -> Iterator[str]:
    """Whose cache nobody has held to the network that it is of."""
    text = text_config(config)
    family, own = text.get("model_type"), (config.get("text_config") or config).get("model_type")
    if own in SAME_AS:
        yield f"{own} has the architecture of {family}, and is planned as it is."
    if family not in KNOWN_FAMILIES and not (text.get("layer_types") or text.get("layers_block_type")):
        heads = "with the heads that config.json states"
        yield f"Family {family!r:.100} is not known: every layer is taken to keep all tokens, {heads}."
    elif family not in KNOWN_FAMILIES:
        yield f"Family {family!r:.100} is not known: its layers are taken to keep what layer_types and heads say."


def _checked(config: dict[str, Any], file: str) -> dict[str, Any]:
    """Refuse a configuration that lacks what every model has, naming all of it."""
    with model_errors(file):
        check_sizes(config, file)
        text = text_config(config)
    family = text.get("model_type") or config.get("model_type")
    needed = NEEDED | ({} if family in WITHOUT_HEADS else NEEDED_TO_ATTEND)
    missing = [name for name, others in needed.items() if not any(text.get(each) for each in (name, *others))]
    missing += [] if family else ["model_type"]
    if missing:
        raise UnsupportedModelError(f"{file} has no {', no '.join(missing)}; a plan needs them.")
    return config
