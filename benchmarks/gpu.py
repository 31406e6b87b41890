"""Extraction on a GPU: tokens a second, as a share of the card's own matrix rate.

Models of random weights in the shapes of phi-2 and Llama-3-8B, bfloat16, on prompts of MMLU's
lengths. Beside each: the rate that one large bfloat16 matrix product reaches on the same card, the
bare forward pass over the same batches (the rest is what capturing costs), and the hours that the
14,042 questions of MMLU without shots would take.

    python benchmarks/gpu.py               # or: make bench-gpu
    python benchmarks/gpu.py --device cpu --shapes tiny --prompts 32
"""

import argparse
import time

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM

from layercal.model import LensModel, extract
from layercal.model.lens_model import resolve_device

SHAPES = {
    "phi-2": ("phi", 51200, 2560, 10240, 32, 32, 32),
    "llama-3-8b": ("llama", 128256, 4096, 14336, 32, 32, 8),
    "tiny": ("llama", 1000, 64, 128, 4, 4, 2),
}
QUESTIONS, MEAN, SPREAD = 14_042, 4.6, 0.6  # MMLU without shots: log-normal, some 120 tokens


def build(shape, device):
    """A model of random weights, made on the device."""
    kind, vocabulary, width, inner, layers, heads, kv_heads = SHAPES[shape]
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    with torch.device(device):
        return LensModel(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def block_parameters(read):
    """Weights that each token passes: those of the blocks, without embedding and head."""
    return sum(p.numel() for block in read.blocks for p in block.parameters())


def seconds(act, device, repeats=3):
    """Least time of some calls, the device being done; the first call does not count."""
    act()
    spent = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        act()
        wait(device)
        spent.append(time.perf_counter() - start)
    return min(spent)


def wait(device):
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device, size):
    """FLOP/s of a square bfloat16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def bare(read, prompts, batch_tokens):
    """The decoder alone over padded batches."""
    with torch.inference_mode():
        for rows in extract.length_batches([len(one) for one in prompts], batch_tokens):
            ids = [torch.tensor(prompts[row]) for row in rows]
            mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
            read.decoder(
                input_ids=pad_sequence(ids, batch_first=True).to(read.device),
                attention_mask=mask.to(read.device),
                use_cache=False,
            )


def measure(shape, prompts, peak, device, batch_tokens):
    """Print one row of the table."""
    read = build(shape, device)
    ours = seconds(lambda: extract.read(read, prompts, batch_tokens), device)
    plain = seconds(lambda: bare(read, prompts, batch_tokens), device)
    tokens = sum(map(len, prompts))
    rate = tokens / ours
    share = rate * 2 * block_parameters(read) / peak
    hours = QUESTIONS * tokens / len(prompts) / rate / 3600
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    print(f"| {shape} | {rate:.0f} | {share:.0%} | {ours / plain - 1:.1%} | {hours:.2g}", end="")
    print(f" | {memory:.1f} |")


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--device", default="auto")
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=["phi-2", "llama-3-8b"])
    made.add_argument("--prompts", type=int, default=2000)
    made.add_argument("--batch-tokens", type=int, default=16384)
    args = made.parse_args()
    device = resolve_device(args.device)
    peak = matrix_rate(device, 8192 if device == "cuda" else 1024)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"{name}: {peak / 1e12:.3g} TFLOP/s in a bfloat16 matrix product")
    lengths = np.random.default_rng(0).lognormal(MEAN, SPREAD, args.prompts)
    lengths = lengths.astype(int).clip(20, 2000)
    prompts = [(np.arange(n) * 7919 % 1000).tolist() for n in lengths]
    print("| shape | tokens/s | of the matrix rate | capture costs | MMLU, hours | memory, GB |")
    print("|---|---|---|---|---|---|")
    for shape in args.shapes:
        measure(shape, prompts, peak, device, args.batch_tokens)


if __name__ == "__main__":
    main()
