"""A byte-pair vocabulary in CLIP's form, cut to the words of the captions: 256 bytes, the same at the end of a
word, and the merges that make every caption word one token. Any other word falls into shorter pieces."""
import collections
import functools
import json
import os
import re

PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)


@functools.cache
def byte_letters():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table = {b: chr(b) for b in keep}
    extra = 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    order = keep + [b for b in range(256) if b not in keep]
    return {b: table[b] for b in order}


def split(text):
    letters = byte_letters()
    return ["".join(letters[b] for b in w.encode()) for w in PIECES.findall(text.lower())]


def train(captions, limit=900):
    counts = collections.Counter(w for c in captions for w in split(c))
    words = {w: list(w[:-1]) + [w[-1] + "</w>"] for w in counts}
    merges = []
    while len(merges) < limit:
        pairs = collections.Counter()
        for w, parts in words.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[w]
        if not pairs:
            break
        best = max(sorted(pairs), key=lambda p: pairs[p])
        merges.append(best)
        for w, parts in words.items():
            words[w] = merge(parts, best)
    letters = list(byte_letters().values())
    tokens = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    return {t: i for i, t in enumerate(tokens)}, merges


def merge(parts, pair):
    out, i = [], 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


class Words:
    def __init__(self, vocabulary, merges):
        self.vocabulary, self.ranks, self.cache = vocabulary, {tuple(m): i for i, m in enumerate(merges)}, {}
        self.start, self.end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]

    def word(self, w):
        if w not in self.cache:
            parts = list(w[:-1]) + [w[-1] + "</w>"]
            while len(parts) > 1:
                pair = min(zip(parts, parts[1:]), key=lambda p: self.ranks.get(p, 1 << 30))
                if pair not in self.ranks:
                    break
                parts = merge(parts, pair)
            self.cache[w] = [self.vocabulary[p] for p in parts]
        return self.cache[w]

    def encode(self, text, pad):
        ids = [i for w in split(text) for i in self.word(w)][:75]
        ids = [self.start, *ids, self.end]
        return ids + [pad] * (77 - len(ids))


def save(folder, vocabulary, merges):
    """The two tokenizer folders of an SDXL pipeline; they differ in what they pad with."""
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        path = os.path.join(folder, name)
        os.makedirs(path, exist_ok=True)
        dump = lambda file, value: json.dump(value, open(os.path.join(path, file), "w", encoding="utf-8"), ensure_ascii=False, indent=1)
        json.dump(vocabulary, open(os.path.join(path, "vocab.json"), "w", encoding="utf-8"), ensure_ascii=False, separators=(",", ":"))
        with open(os.path.join(path, "merges.txt"), "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
        dump("special_tokens_map.json", special)
        dump("tokenizer_config.json", {**special, "add_prefix_space": False, "do_lower_case": True, "errors": "replace",
                                       "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
