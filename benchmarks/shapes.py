"""Checkpoints with the shapes of well-known models and random weights, for measuring speed without any download.

python benchmarks/shapes.py qwen2.5-0.5b DIRECTORY
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pagoda.commands.shapes import SHAPES, shape_config


def write_checkpoint(shape: str, directory: Path, seed: int = 0) -> None:
    """Save a bf16 checkpoint of `shape`: weights normal with standard deviation 0.02, norms one."""
    torch.manual_seed(seed)
    config = shape_config(shape)
    config.bos_token_id = config.eos_token_id = None
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The smallest byte-level BPE, which converters to other engines' files ask for: a token a byte, and one merge."""
    letters = sorted(ByteLevel.alphabet())
    merge = (letters[0], letters[1])
    vocabulary = {token: index for index, token in enumerate([*letters, "".join(merge)])}
    tokenizer = Tokenizer(BPE(vocabulary, [merge]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    write_checkpoint(arguments.shape, arguments.directory)


if __name__ == "__main__":
    main()
