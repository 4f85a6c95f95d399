"""The CLIP byte pair vocabulary in the form of the published checkpoint folders."""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

from files import GOLDEN, link, write_json, write_text

MERGES = 49152 - 256 - 2  # merges the model was trained with; the list goes on unused


def byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes, in vocabulary order.

    Bytes that print stand for themselves and come first; the others follow in
    byte order and become the code points from 256 on.
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printing]
    return [chr(byte) for byte in printing] + [chr(256 + i) for i in range(len(hidden))]


def make_vocab() -> None:
    """`vocab/vocab.json` and `vocab/merges.txt`."""
    # found without importing the package, which would load torch vision models
    package = Path(find_spec("open_clip").submodule_search_locations[0])
    lines = gzip.decompress((package / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 1 + MERGES]  # the first line is a heading
    symbols = byte_symbols()
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(tokens)}
    assert len(ids) == 49408 and len(merges) == 48894
    text = json.dumps(ids, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_text(GOLDEN / "vocab/vocab.json", text)
    write_text(GOLDEN / "vocab/merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    # the sizes of the published files
    assert (GOLDEN / "vocab/vocab.json").stat().st_size == 1059962
    assert (GOLDEN / "vocab/merges.txt").stat().st_size == 524619
    # what the library carries for checkpoints without a tokenizer
    packed = gzip.compress((GOLDEN / "vocab/merges.txt").read_bytes(), 9, mtime=0)
    (GOLDEN.parent / "crates/sdxl/src/text/clip_merges.txt.gz").write_bytes(packed)


def special(content: str, tagged: bool) -> dict:
    """One special token as the published JSON writes it."""
    token = {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", **token} if tagged else token


def make_tokenizer(folder: Path, pad: str) -> None:
    """A tokenizer folder without `tokenizer.json`, as the SDXL checkpoints have it.

    `pad` is `<|endoftext|>` for the first encoder and `!` for the second.
    """
    start, end = "<|startoftext|>", "<|endoftext|>"
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": special(start, True),
            "clean_up_tokenization_spaces": True,
            "do_lower_case": True,
            "eos_token": special(end, True),
            "errors": "replace",
            "model_max_length": 77,
            "pad_token": pad,
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": special(end, True),
        },
    )
    write_json(
        folder / "special_tokens_map.json",
        {
            "bos_token": special(start, False),
            "eos_token": special(end, False),
            "pad_token": pad,
            "unk_token": special(end, False),
        },
    )
    for name in ("vocab.json", "merges.txt"):
        link(folder / name, f"../../vocab/{name}")
