# Times a training step of a GPT with PyTorch: the same sizes, loss, clipping and optimizer as bench/steps.ts.
# Usage: torch_step.py layers width heads vocabulary tokens batch f32|bf16 seconds threads. Prints one JSON object:
# wall and CPU seconds of steps, the process's peak resident memory, the library that multiplies.
import json
import os
import resource
import sys
import time

threads = sys.argv[9]
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = threads  # read when torch is loaded

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x):
        b, t, w = x.shape
        q, k, v = self.c_attn(x).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1) * (w // self.heads) ** -0.5
            mask = torch.ones(t, t, dtype=torch.bool).tril()
            y = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        return self.c_proj(y.transpose(1, 2).reshape(b, t, w))

    def forward(self, x):
        x = x + self.attend(self.ln_1(x))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, layers, width, heads, vocabulary, tokens):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


def blas():
    """The BLAS that is loaded: Debian's torch takes the one that the system is set to."""
    if not os.path.exists("/proc/self/maps"):
        return "BLAS unknown"
    with open("/proc/self/maps") as maps:
        files = {os.path.realpath(line.split()[-1]) for line in maps if "blas" in line}
    return ", ".join(sorted(os.path.basename(f) for f in files)) or "its own BLAS"


def main():
    layers, width, heads, vocabulary, tokens, batch = map(int, sys.argv[1:7])
    bf16, seconds = sys.argv[7] == "bf16", float(sys.argv[8])
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model = GPT(layers, width, heads, vocabulary, tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    i = torch.arange(batch * tokens + 1)
    stream = (i * 7919 + i // 13) % vocabulary
    inputs, targets = stream[:-1].view(batch, tokens), stream[1:].view(batch, tokens)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(inputs)
        loss = F.cross_entropy(logits.float().view(-1, vocabulary), targets.view(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    loss = step()
    step()
    samples, cpu, began = [], [], time.perf_counter()
    while len(samples) < 3 or time.perf_counter() - began < seconds:
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        samples.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {"version": torch.__version__, "blas": blas(), "peakBytes": peak}
    print(json.dumps({**facts, "samples": samples, "cpu": cpu, "loss": loss}))


main()
