"""Writes the noise fixtures of crates/tensor from PyTorch.

    python reference/noise.py            CPU generator -> random_cpu.txt
    python reference/noise.py --cuda     CUDA generator, on a machine with an NVIDIA card -> random_cuda.txt

CPU lines: seed, the lengths of successive torch.randn calls, a 64-bit FNV-1a hash of all bits, the first values' bits.
CUDA lines: seed, the card's thread limit, the lengths, and value pairs index:value over the concatenation.
"""

import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).parent.parent / "crates/tensor/tests/fixtures"
SEEDS = [0, 1, 42, 123456789, 2**32 - 1, 2**32 + 7, 2**63 + 5, 2**64 - 1]
LENGTHS = [
    [1], [2, 1, 4], [15], [16], [17], [31], [32], [33], [64], [100],
    [15, 15, 16, 3, 17, 1], [7, 64, 7, 31], [4 * 64 * 64], [4 * 64 * 64] * 3, [4 * 33 * 41] * 2,
]
CUDA_LENGTHS = [
    [12], [1, 1, 1], [4 * 64 * 64] * 4, [4 * 128 * 128] * 3, [100, 16384, 31],
    [270336 + 300, 50], [4 * 270336 + 5000, 20], [3 * 1024 * 1024 + 77, 9],
]


def draw(seed, lengths, device):
    generator = torch.Generator(device).manual_seed(seed)
    return torch.cat([torch.randn(n, generator=generator, device=device) for n in lengths]).cpu().numpy()


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def cpu():
    for i, seed in enumerate(SEEDS):
        for lengths in LENGTHS:
            if sum(lengths) > 1000 and i % 3:
                continue
            values = draw(seed, lengths, "cpu")
            first = " ".join(f"{b:08x}" for b in values.view("uint32")[:3])
            yield f"{seed} {','.join(map(str, lengths))} {fnv(values.tobytes()):016x} {first}"


def cuda():
    card = torch.cuda.get_device_properties(0)
    threads = card.multi_processor_count * (card.max_threads_per_multi_processor // 256) * 256
    for i, seed in enumerate(SEEDS):
        for lengths in CUDA_LENGTHS:
            if sum(lengths) > 300000 and i % 4:
                continue
            values = draw(seed, lengths, "cuda")
            n = len(values)
            places = sorted({0, 1, 2, n - 1, n - 2, *(k * n // 13 for k in range(13))} & set(range(n)))
            pairs = " ".join(f"{p}:{values[p]:.9g}" for p in places)
            yield f"{seed} {threads} {','.join(map(str, lengths))} {pairs}"


name, rows = ("random_cuda.txt", cuda) if "--cuda" in sys.argv else ("random_cpu.txt", cpu)
target = Path(sys.argv[-1]) if sys.argv[-1].endswith(".txt") else FOLDER / name
target.write_text("\n".join(rows()) + "\n")
