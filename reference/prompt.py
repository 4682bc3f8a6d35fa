"""Writes the tokenizer fixtures of crates/engine from transformers.

    python reference/prompt.py

prompt_tokens.json: texts with the ids of CLIPTokenizer, padded with the end token and with "!".
tokenizers/: small tokenizer folders in the layouts of transformers 4 and 5, with what they give for a few texts.
"""

import json
import random
import shutil
from pathlib import Path

from transformers import CLIPTokenizer

ROOT = Path(__file__).parent.parent / "crates/engine"
FIXTURES = ROOT / "tests/fixtures"

TEXTS = [
    "", " ", "\n\t ", "a photo of a cat", "A Photo Of A CAT", "film noir style, ink sketch|vector, male man, highly detailed",
    "don't DON'T we'll They'VE it's 'tis rock'n'roll I'd i'm ''s '''t", "12345 3.14 1,000,000 x2 2x 4k 8K", "hi! hi!! hi!!! ?! !a! !",
    "naïve café cafe\u0301 A\u030a \u212b", "e\u0301\u0301\u0301 \u0301lone", "ΟΔΟΣ ὈΔΥΣΣΕΎΣ σς", "İstanbul ıIi ŞŞ ſ K ﬁ Ǆ ß ẞ",
    "日本語のテキスト 中文字符 한국어 \u1112\u1161\u11ab", "مرحبا بالعالم שלום", "नमस्ते ไทยแลนด์ ខ្មែរ", "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 ☃ ☃️ 🇩🇪",
    "½ ² Ⅷ ④ ٣ ௧ 〇 一", "&amp; &lt;b&gt; <b>bold</b> &#39; {a|b} #tag @you", "a\u00a0b\u2003c\u3000d\u200be\u200df\ufeffg", "line\r\nend\x85next\u2028sep",
    "<|endoftext|>", "a<|endoftext|>b", "<|startoftext|> <|ENDOFTEXT|>>> <|StartOfText|>x ><|endoftext|", "<|endoftext|", "https://example.org/a?b=c&d=e%20f",
    "snake_case kebab-case CamelCase a.b.c", "... --- *** ~~~ ___ ,,, ;;;", "a,b, c ,d,", "\ufffd\U0010ffff\ue000\U000e0041", "Ａ ｆｕｌｌｗｉｄｔｈ １２３",
    "a" * 300, "ab" * 150, "!" * 40, "日" * 40, "🙂" * 20, "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "portrait of a woman, (masterpiece:1.2), [blurry], \\(brackets\\), BREAK, 35mm", "zażółć gęślą jaźń", "Å Å ﬀ ﷺ",
]


def words(seed):
    rng = random.Random(seed)
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789  ''.,!?<|>&;éüßΣσςİ\u0301\u0308\u200d漢字かな한글👍🏽\u00a0\n"
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 60))) for _ in range(60)]


def clip(pad):
    merges = [tuple(line.split(" ")) for line in (ROOT / "src/prompt/clip_merges.txt").read_text().splitlines()]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = characters + [c + "</w>" for c in characters] + ["".join(m) for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, pad_token=pad, model_max_length=77)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def full():
    tokenizers = {"clip": clip("<|endoftext|>"), "zero": clip("!")}
    rows = [{"text": t, **{name: ids(k, t) for name, k in tokenizers.items()}} for t in TEXTS + words(7)]
    (FIXTURES / "prompt_tokens.json").write_text(json.dumps(rows, ensure_ascii=True, separators=(",", ":")) + "\n")


def small():
    merges = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>"), ("n", "e"), ("ne", "w"), ("t", "h"), ("th", "e</w>"), ("Ã", "©</w>")]
    tokens = [c + end for end in ("", "</w>") for c in "abcdehilmnoprstuw,!Ã©"] + ["".join(m) for m in merges]
    start, end = "<|startoftext|>", "<|endoftext|>"

    def token(content, normalized):
        return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}

    def folder(name, config, extra=None, specials=(start, end), late=False):
        vocab = {t: i for i, t in enumerate(tokens)}
        if not late:
            vocab |= {t: len(tokens) + i for i, t in enumerate(specials)}
        path = FIXTURES / "tokenizers" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        if name.startswith("new"):
            CLIPTokenizer(vocab=vocab, merges=merges, **config).save_pretrained(path)
            if extra:
                tokenizer = CLIPTokenizer.from_pretrained(path)
                tokenizer.add_tokens(extra)
                tokenizer.save_pretrained(path)
        else:
            (path / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
            (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
            (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **config}))
            if extra:
                (path / "special_tokens_map.json").write_text(json.dumps(extra))
        tokenizer = CLIPTokenizer.from_pretrained(path)
        # Without an unknown token in the vocabulary file transformers refuses texts with unknown bytes.
        texts = ["low lower newest the", "low<|endoftext|>"] if late else ["low lower newest the", "hi! Héé zzz, qqq low,", "<|endoftext|>low<|ENDOFTEXT|> !", "<pad>low<PAD> <w> x<w>", "mine new", ""]
        expected = {
            "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id,
            "max_length": min(tokenizer.model_max_length, 77), "rows": [[t, ids(tokenizer, t)] for t in texts],
        }
        (path / "expected.json").write_text(json.dumps(expected, ensure_ascii=False))

    folder("new", {"model_max_length": 77})
    folder("new_pad", {"model_max_length": 20, "pad_token": "!"})
    folder("new_other", {"model_max_length": 77, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
           extra=["<w>"], specials=("<s>", "</s>", "<pad>", "<unk>"))
    folder("old", {"model_max_length": 77, "bos_token": {"__type": "AddedToken", **token(start, True)},
                   "eos_token": {"__type": "AddedToken", **token(end, True)}, "pad_token": end},
           {"bos_token": token(start, True), "eos_token": token(end, True), "pad_token": end, "unk_token": token(end, True)})
    decoder = {str(len(tokens)): {**token(start, True), "special": True}, str(len(tokens) + 1): {**token(end, True), "special": True},
               str(tokens.index("!")): {**token("!", False), "special": True}}
    folder("old_pad", {"model_max_length": 77, "added_tokens_decoder": decoder, "bos_token": start, "eos_token": end, "pad_token": "!",
                       "unk_token": end}, {"pad_token": "!"})
    folder("old_bare", {}, late=True)


full()
small()
