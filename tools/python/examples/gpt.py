#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A small GPT on a CPU, trained twice from the same weights on the same text: once with PyTorch's cross_entropy, once with
clxent's. The two take turns, step by step; their losses must agree. Prints both, and the median times of a step and of
the loss and its gradient alone.

    python tools/python/examples/gpt.py --text /usr/share/common-licenses/GPL-3
"""

import argparse
import statistics
import sys
import time

import torch

import clxent.torch


class GPT(torch.nn.Module):
    def __init__(self, vocabulary, width, layers, seq):
        super().__init__()
        self.tokens, self.places = torch.nn.Embedding(vocabulary, width), torch.nn.Embedding(seq, width)
        layer = torch.nn.TransformerEncoderLayer(width, width // 32, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.blocks = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("mask", torch.full((seq, seq), -torch.inf).triu(1))

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(self.blocks(x, mask=self.mask)).flatten(0, 1)  # [batch * seq, vocabulary]


def batches(text, vocabulary, batch, seq):
    """Two bytes are a token, modulo the size of the vocabulary."""
    data = torch.frombuffer(bytearray(text[: len(text) // 2 * 2]), dtype=torch.uint8).long()
    data = (data[0::2] * 256 + data[1::2]) % vocabulary
    if len(data) <= seq:
        sys.exit("gpt.py: the text has %d bytes: takes more than %d" % (len(text), 2 * seq))
    random = torch.Generator().manual_seed(1)
    while True:
        starts = torch.randint(len(data) - seq, (batch,), generator=random)
        rows = torch.stack([data[i : i + seq + 1] for i in starts])
        yield rows[:, :-1], rows[:, 1:].flatten()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="any file")
    parser.add_argument("--steps", type=int, default=20, help="default 20")
    parser.add_argument("--vocabulary", type=int, default=32768, help="default 32768")
    parser.add_argument("--batch", type=int, default=8, help="default 8")
    parser.add_argument("--seq", type=int, default=128, help="default 128")
    parser.add_argument("--width", type=int, default=128, help="a multiple of 32 (default 128)")
    parser.add_argument("--layers", type=int, default=2, help="default 2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch (default: its own)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with open(options.text, "rb") as stream:
        data = batches(stream.read(), options.vocabulary, options.batch, options.seq)

    functions = {"PyTorch": torch.nn.functional.cross_entropy, "clxent": clxent.torch.cross_entropy}
    training = {}
    for name in functions:
        torch.manual_seed(0)
        model = GPT(options.vocabulary, options.width, options.layers, options.seq)
        training[name] = model, torch.optim.AdamW(model.parameters(), 1e-3)
    steps, alone = ({name: [] for name in functions} for _ in range(2))
    for step in range(options.steps + 1):  # the first compiles, and does not count
        tokens, targets = next(data)
        losses = {}
        for name, cross_entropy in functions.items():
            model, optimizer = training[name]
            start = time.perf_counter()
            logits = model(tokens)
            loss = cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name] = loss.item()
            middle = time.perf_counter()
            again = logits.detach().requires_grad_(True)
            begin = time.perf_counter()
            cross_entropy(again, targets).backward()
            if step > 0:
                alone[name].append(time.perf_counter() - begin)
                steps[name].append(middle - start)
        if step % 5 == 0:
            print("step %3d  " % step + "  ".join("%s %.5f" % pair for pair in losses.items()), flush=True)
        if not abs(losses["clxent"] - losses["PyTorch"]) <= 1e-3 * losses["PyTorch"]:
            sys.exit("gpt.py: the losses differ")
    for name in functions:
        times = statistics.median(steps[name]), statistics.median(alone[name])
        print("%-8s %8.1f ms a step, %8.1f ms the loss and its gradient" % (name, *(1e3 * t for t in times)))
    ratios = (statistics.median(a / b for a, b in zip(t["PyTorch"], t["clxent"])) for t in (steps, alone))
    print("PyTorch / clxent: %.2f a step, %.2f the loss (PyTorch %s)" % (*ratios, torch.__version__))


if __name__ == "__main__":
    main()
