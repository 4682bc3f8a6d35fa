"""Vocabularies of CLIP's byte-pair tokenizer: the published one from its merges list, and a tiny one."""

import gzip
from pathlib import Path

WORDS = (
    "a photo of the man and woman in an old city at night with red hair warm light portrait film analog vintage "
    "watercolour painting snow street smiling person wearing glasses looking at the camera standing near water"
).split()


def symbols():
    """Bytes as printable characters, in the order of the published vocabulary ("!" first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def vocabulary(merges):
    letters = symbols()
    tokens = letters + [c + "</w>" for c in letters] + ["".join(pair) for pair in merges]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def published(path):
    """From `bpe_simple_vocab_16e6.txt(.gz)` of openai/CLIP: 49408 tokens."""
    data = Path(path).read_bytes()
    text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    lines = text.split("\n")[1 : 49152 - 256 - 2 + 1]
    return vocabulary([tuple(line.split()) for line in lines])


def tiny(merges=48):
    """Byte-pair merges learned on a few words, so that prompts hold whole words, pieces and single bytes."""
    words = [[*w[:-1], w[-1] + "</w>"] for w in WORDS]
    learned = []
    for _ in range(merges):
        counts = {}
        for word in words:
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        learned.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return vocabulary(learned)
