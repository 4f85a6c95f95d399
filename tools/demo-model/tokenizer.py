"""Writes a reduced CLIP tokenizer: the byte alphabet, and only those merges that our words need.

The merges come from CLIP's own table in their own order, so a caption's words split exactly as the full
tokenizer splits them, and any other prompt still tokenises (into smaller pieces).
"""

import gzip
import json
import os
import random
import re

import open_clip
from transformers import CLIPTokenizer

import draw

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77


def _alphabet():
    """CLIP's 256 byte characters in vocabulary order."""
    shown = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))]


def caption_words(samples=30000, seed=5):
    rng = random.Random(seed)
    words = set()
    for _ in range(samples):
        words.update(re.findall(r"[a-z]+|\d|[^\w\s]", draw.caption(rng, draw.sample_scene(rng))))
    return sorted(words)


def _needed_merges(words):
    table = os.path.join(os.path.dirname(open_clip.__file__), "bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.open(table).read().decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    rank = {m: i for i, m in enumerate(merges)}
    used = set()
    for word in words:
        parts = list(word[:-1]) + [word[-1] + "</w>"]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda p: rank.get(p, 1 << 30))
            if best not in rank:
                break
            used.add(best)
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append("".join(best))
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
    return [m for m in merges if m in used]


def write_tokenizer(folder, pad):
    """Writes vocab.json, merges.txt and the two small configs, as the published folders have them."""
    os.makedirs(folder, exist_ok=True)
    alphabet = _alphabet()
    merges = _needed_merges(caption_words())
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(m) for m in merges] + [START, END]
    with open(os.path.join(folder, "vocab.json"), "w", encoding="utf-8") as f:
        json.dump({t: i for i, t in enumerate(tokens)}, f, ensure_ascii=False)
    with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))

    def added(text, normalized=True):
        return {"content": text, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}

    with open(os.path.join(folder, "special_tokens_map.json"), "w") as f:
        json.dump({"bos_token": added(START), "eos_token": added(END), "pad_token": pad, "unk_token": added(END)}, f, indent=2)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump({"add_prefix_space": False, "bos_token": dict(added(START), __type="AddedToken"),
                   "clean_up_tokenization_spaces": True, "do_lower_case": True,
                   "eos_token": dict(added(END), __type="AddedToken"), "errors": "replace",
                   "model_max_length": MAX_LENGTH, "pad_token": pad, "tokenizer_class": "CLIPTokenizer",
                   "unk_token": dict(added(END), __type="AddedToken")}, f, indent=2)
    return len(tokens)


class Tokenizers:
    """Both tokenizers of a work folder, with a cache of words: captions are encoded by the thousand."""

    def __init__(self, folder_1, folder_2):
        self.one = CLIPTokenizer.from_pretrained(folder_1)
        self.two = CLIPTokenizer.from_pretrained(folder_2)
        self.size = len(self.one.get_vocab())
        self.start, self.end = self.one.bos_token_id, self.one.eos_token_id
        self.pad_2 = self.two.pad_token_id
        self.words = {}

    def _ids(self, text):
        ids = [self.start]
        for word in re.findall(r"[a-z]+|\d|[^\w\s]", text):
            if word not in self.words:
                self.words[word] = self.one(word, add_special_tokens=False).input_ids
            ids += self.words[word]
        return ids[: MAX_LENGTH - 1] + [self.end]

    def __call__(self, texts):
        """Two lists of 77 ids per text: the first padded with the end token, the second with '!'."""
        rows = [self._ids(t) for t in texts]
        one = [r + [self.end] * (MAX_LENGTH - len(r)) for r in rows]
        two = [r + [self.pad_2] * (MAX_LENGTH - len(r)) for r in rows]
        return one, two
