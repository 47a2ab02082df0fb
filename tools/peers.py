#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""clxent beside other implementations of the same loss on the same machine.

    tools/peers.py [--clxent build/clxent] [--onednn build/peer_onednn] [--python tinygrad=venv/bin/python] ...

Times the mean softmax cross-entropy of f32 logits: with its gradient, without (--op loss), or both. Each implementation
runs in a process of its own, warms up, and then waits. They take turns, round after round, of two runs each; the second
counts, so that neither start-up nor what the others left in the caches is in a figure, and what disturbs the machine
disturbs all. A ratio is the median over the rounds of a time / clxent's in the same round. All are given the same number
of threads, where they can be told. Those in Python answer when their threads no longer spin. What is not installed is
listed as such.

clxent is its command line, clxent.py the Python package on the NumPy arrays that the others get, too. oneDNN (build with
-DCLXENT_BUILD_PEERS=ON) has no loss: it runs log-softmax forward and backward, which is less work. compiled is PyTorch's
loss by torch.compile(), JAX its log_softmax by jit, tinygrad its own loss on OpenCL. OpenVINO and ONNX Runtime only infer:
they have the loss alone, of log-softmax and a gather. Those in Python run in the one that calls this script, or that --python
names for them; PyTorch's is compiled's, too:

    python3 -m venv venv && venv/bin/pip install jax numpy onnx onnxruntime openvino tinygrad torch
    venv/bin/python tools/peers.py --op both --threads 2

NumPy's arrays lie in huge pages; what others allocate, clxent's buffers too, in pages of 4 KiB, whose first use may cost more
than what is measured. With --huge-pages glibc allocates huge ones for all.

With --linear the loss is that of linear(hidden, weight), with the gradients of both, beside PyTorch's cross_entropy of its
linear, the same by torch.compile(), PyTorch's own linear_cross_entropy in chunks where the release has it (chunked), and
JAX's jit: tools/peers.py --linear --threads 2.

With --gpu the peers are PyTorch on its GPU, the same loss by torch.compile(), and Liger's; --dtype sets their logits.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

SHAPES = ((65536, 1024), (2048, 32768), (512, 131072))
PEERS = ("clxent", "clxent.py", "oneDNN", "PyTorch", "compiled", "JAX", "tinygrad")
LOSS_PEERS = ("OpenVINO", "ONNX")  # which have no gradient
GPU_PEERS = ("clxent", "PyTorch", "compiled", "Liger")
LINEAR_SHAPES = ((1024, 1024, 32768), (512, 2048, 128256))
LINEAR_PEERS = ("clxent", "PyTorch", "compiled", "chunked", "JAX")
TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


# ---- Peers in Python: this script as their process ------------------------------------------------


def data(*shape):
    """Logits of rows x classes and targets, or of rows x features x classes hidden states, weight and targets."""
    import numpy as np

    random = np.random.default_rng(1)
    if len(shape) == 2:
        inputs = [random.random(shape, np.float32) * np.float32(16) - np.float32(8)]
    else:
        rows, features, classes = shape
        inputs = [random.random((rows, features), np.float32) * np.float32(2) - np.float32(1)]
        inputs.append(random.random((classes, features), np.float32) * np.float32(0.2) - np.float32(0.1))
    return (*inputs, random.integers(0, shape[-1], shape[0]))


def settle():
    """Returns when no thread of this process works any more."""
    for _ in range(200):
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 5e-4:
            return


def serve(name, step):
    """Warms up, says so, then runs step once for each line of standard input."""
    for _ in range(3):  # tinygrad's JIT takes two runs to record
        step()
    settle()
    print(name, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        settle()
        print("%.9f" % seconds, flush=True)


def serve_torch(name, shape, options):
    import torch
    from torch.nn import functional

    def linear(hidden, weight, targets):
        return functional.cross_entropy(functional.linear(hidden, weight), targets)

    loss, version = linear if options.linear else functional.cross_entropy, "PyTorch " + torch.__version__
    if name == "compiled":
        loss, version = torch.compile(loss), version + ", compiled"
    if name == "chunked":  # a release without options has no chunks either
        chunks = torch.nn.LinearCrossEntropyOptions()
        loss, version = functools.partial(functional.linear_cross_entropy, options=chunks), version + ", chunked"
    if name == "Liger":
        from liger_kernel.transformers.functional import liger_cross_entropy as loss

        version = "Liger, " + version
    torch.set_num_threads(options.threads)
    place = "cuda" if options.gpu else "cpu"
    *inputs, targets = (torch.from_numpy(array).to(place) for array in data(*shape))
    inputs = [tensor.to(getattr(torch, TORCH_DTYPES[options.dtype])) for tensor in inputs]
    for tensor in inputs:
        tensor.requires_grad_(options.op == "fused")

    def step():
        for tensor in inputs:
            tensor.grad = None
        result = loss(*inputs, targets)
        if options.op == "fused":
            result.backward()
        if options.gpu:
            torch.cuda.synchronize()

    serve(version, step)


def serve_clxent(shape, options):
    import numpy as np

    import clxent

    logits, targets = data(*shape)
    wanted = {"return_grad": True, "out": {"gradient": np.empty_like(logits)}} if options.op == "fused" else {}

    def step():
        clxent.cross_entropy(logits, targets, device=options.device, **wanted)

    serve("clxent %s, NumPy arrays" % clxent.__version__, step)


def serve_jax(shape, options):
    import jax
    import jax.numpy as jnp

    arrays = [jnp.asarray(array) for array in data(*shape)]

    def loss(*arrays):
        *inputs, y = arrays
        x = inputs[0] @ inputs[1].T if options.linear else inputs[0]
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()

    inputs = tuple(range(len(arrays) - 1))
    run = jax.jit(jax.value_and_grad(loss, argnums=inputs) if options.op == "fused" else loss)
    serve(
        "JAX %s on %s" % (jax.__version__, jax.default_backend()),
        lambda: jax.block_until_ready(run(*arrays)),
    )


def serve_tinygrad(shape, options):
    from importlib.metadata import version

    from tinygrad import Device, Tensor, TinyJit

    logits, targets = data(*shape)
    x, y = Tensor(logits).realize(), Tensor(targets.astype("i4")).realize()

    @TinyJit
    def run(x, y):
        loss = x.sparse_categorical_crossentropy(y)
        if options.op == "loss":
            return loss.realize()
        (gradient,) = loss.gradient(x)
        return loss.realize(), gradient.realize()

    def step():
        run(x, y)
        Device[Device.DEFAULT].synchronize()

    serve("tinygrad %s on %s" % (version("tinygrad"), Device.DEFAULT), step)


def serve_openvino(shape, options):
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    logits, targets = data(*shape)
    x, y = ops.parameter(list(shape), np.float32), ops.parameter([shape[0], 1], np.int64)
    picked = ops.gather_elements(ops.log_softmax(x, 1), y, 1)
    loss = ops.negative(ops.reduce_mean(picked, np.array([0, 1]), False))
    settings = {"INFERENCE_NUM_THREADS": options.threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Model([loss], [x, y]), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(logits, shared_memory=True))
    request.set_input_tensor(1, openvino.Tensor(targets[:, None]))
    serve("OpenVINO " + openvino.__version__.split("-")[0], request.infer)


def serve_onnx(shape, options):
    import onnxruntime
    from onnx import TensorProto, helper

    logits, targets = data(*shape)
    nodes = [
        helper.make_node("LogSoftmax", ["x"], ["log_p"], axis=1),
        helper.make_node("GatherElements", ["log_p", "y"], ["picked"], axis=1),
        helper.make_node("ReduceMean", ["picked"], ["mean"], keepdims=0),
        helper.make_node("Neg", ["mean"], ["loss"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.INT64, [shape[0], 1]),
    ]
    output = helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "loss", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, ["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", logits)
    binding.bind_cpu_input("y", targets[:, None])
    binding.bind_output("loss")
    serve("ONNX Runtime " + onnxruntime.__version__, lambda: session.run_with_iobinding(binding))


# ---- In turn ------------------------------------------------------------------------------------


class Peer:
    """A process that prints a line once warm, then the seconds of a run for each line that it is given."""

    def __init__(self, command, environment):
        self.log = ""
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # a pipe might fill up
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                universal_newlines=True,
                env={**os.environ, **environment},
            )
        except OSError as error:
            self.log = "%s: %s" % (command[0], error.strerror)
            self.name = ""
            return
        self.name = self.process.stdout.readline().strip()
        if not self.name:
            self.close()

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds = self.process.stdout.readline()
        if not seconds:
            self.close()
            sys.exit("peers.py: %s: %s" % (self.name, self.log))
        return float(seconds)

    def close(self):
        self.process.communicate()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        self.log = lines[-1] if lines else "status %d" % self.process.returncode


def why_not(peer, command):
    """One line on why a peer is not there."""
    if any(text in peer.log for text in ("ModuleNotFoundError", "No such file", "Permission denied")):
        return "not installed"
    return "failed: " + peer.log


def commands(options, shape):
    """Name, command and environment of each peer."""
    sizes, threads = [str(size) for size in shape], str(options.threads)
    python = dict(pair.split("=", 1) for pair in options.python)
    for name in ("compiled", "chunked"):
        python.setdefault(name, python.get("pytorch", sys.executable))
    here = os.path.dirname(os.path.abspath(__file__))
    names = LINEAR_PEERS if options.linear else GPU_PEERS if options.gpu else PEERS
    for name in (*names, *LOSS_PEERS) if options.op == "loss" and not options.gpu else names:
        environment = {"OMP_NUM_THREADS": threads, "NPROC": threads}  # the second is JAX's
        device = [] if options.device is None else ["--device", options.device]
        if name == "clxent":
            command = [options.clxent, "bench", "--loop", *device]
            for flag, size in zip(("rows", *(["features"] if options.linear else []), "classes"), sizes):
                command += ["--" + flag, size]
            command += ["--op", "linear", "--backward"] if options.linear else ["--op", options.op]
            command += ["--dtype", options.dtype]
        elif name == "oneDNN":
            command = [options.onednn, *sizes, *(["loss"] if options.op == "loss" else [])]
        else:
            command = [python.get(name.lower(), sys.executable), os.path.abspath(__file__), "--serve", name, *sizes]
            command += ["--threads", threads, "--dtype", options.dtype, "--op", options.op, *device]
            command += ["--gpu"] * options.gpu + ["--linear"] * options.linear
            environment.setdefault("DEV", os.environ.get("DEV", "CL"))  # of tinygrad: OpenCL
            built = os.path.join(os.path.dirname(options.clxent), "python", "libclxent.so")
            if name == "clxent.py" and os.path.exists(built):
                paths = [os.path.join(here, "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
                environment.update(CLXENT_LIBRARY=os.path.abspath(built), PYTHONPATH=os.pathsep.join(paths))
        yield name, command, environment


def compare(options, shape):
    """Rows of the table: name, milliseconds (median, least), ratio to clxent; or name and why not."""
    peers, absent = {}, []
    sizes = " x ".join(map(str, shape))
    for name, command, environment in commands(options, shape):
        if name.lower() in options.skip:
            continue
        progress("%s: %s warms up" % (sizes, name))
        if options.huge_pages:
            environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        peer = Peer(command, environment)
        if peer.name:
            peers[name] = peer
        elif name == "clxent":
            sys.exit("peers.py: clxent: " + peer.log)
        else:
            absent.append({"peer": name, "version": why_not(peer, command)})

    seconds = {name: [] for name in peers}
    for i in range(options.rounds):
        progress("%s: round %d of %d" % (sizes, i + 1, options.rounds))
        for name, peer in peers.items():
            peer.run()  # wakes its threads, and the caches hold another's data
            seconds[name].append(peer.run())
            time.sleep(options.pause)  # its threads may spin before they sleep
    progress("")
    for peer in peers.values():
        peer.close()
    found = []
    for name, times in seconds.items():
        ratios = [mine / ours for mine, ours in zip(times, seconds["clxent"])]
        found.append(
            {
                "peer": name,
                "version": peers[name].name,
                "ms": 1e3 * statistics.median(times),
                "least_ms": 1e3 * min(times),
                "ratio": statistics.median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
            }
        )
    return found + absent


def progress(text):
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K" + text)
        sys.stderr.flush()


def main():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--clxent", default=os.path.join(here, "build", "clxent"), help="the executable")
    parser.add_argument("--device", help="OpenCL device of clxent, as for its --device")
    parser.add_argument("--onednn", default=os.path.join(here, "build", "peer_onednn"), help="the executable")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PYTHON", help="for that peer")
    parser.add_argument(
        "--shape", action="append", metavar="ROWSxCLASSES", help="default: three of 2^26 logits"
    )
    parser.add_argument("--linear", action="store_true", help="see above; --shape takes ROWSxFEATURESxCLASSES")
    parser.add_argument("--gpu", action="store_true", help="see above")
    parser.add_argument("--op", choices=("fused", "loss", "both"), default="fused", help="fused: loss and gradient")
    parser.add_argument("--dtype", choices=TORCH_DTYPES, default="f32", help="takes --gpu; default f32")
    parser.add_argument("--rounds", type=int, default=11, help="default 11")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all")
    parser.add_argument("--huge-pages", action="store_true", help="see above")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two runs (default 0.05)")
    parser.add_argument("--skip", action="append", default=[], metavar="PEER", help="in lower case")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        name, *sizes = options.serve
        own = {
            "tinygrad": serve_tinygrad,
            "JAX": serve_jax,
            "clxent.py": serve_clxent,
            "OpenVINO": serve_openvino,
            "ONNX": serve_onnx,
        }
        own.get(name, functools.partial(serve_torch, name))(tuple(map(int, sizes)), options)
        return
    if options.dtype != "f32" and not options.gpu:
        parser.error("--dtype takes f32 without --gpu")
    if options.linear and options.gpu:
        parser.error("--linear is not for --gpu")
    if options.linear and options.op != "fused":
        parser.error("--op is not for --linear")
    if options.rounds < 1 or options.threads < 1 or options.pause < 0:
        parser.error("--rounds and --threads take at least 1, --pause at least 0")
    if any("=" not in pair for pair in options.python):
        parser.error("--python takes PEER=PYTHON, for instance tinygrad=venv/bin/python")
    try:
        default = LINEAR_SHAPES if options.linear else SHAPES
        shapes = [tuple(map(int, text.split("x"))) for text in options.shape or ()] or default
        if any(len(shape) != len(default[0]) or min(shape) < 1 for shape in shapes):
            raise ValueError
    except ValueError:
        takes = ("ROWSxFEATURESxCLASSES", "1024x1024x32768") if options.linear else ("ROWSxCLASSES", "65536x1024")
        parser.error("--shape takes %s, for instance %s" % takes)

    texts = {"fused": "mean loss + gradient", "loss": "mean loss"}
    for number, op in enumerate(("fused", "loss") if options.op == "both" else (options.op,)):
        options.op = op
        if not options.json:
            text = "linear, mean loss + gradients" if options.linear else texts[op]
            pages = ", huge pages" if options.huge_pages else ""
            sizes = (options.dtype, options.threads, pages, options.rounds)
            print("\n" * (number > 0) + text + ", %s, %d threads%s, median of %d rounds" % sizes)
        run_shapes(options, shapes)


def run_shapes(options, shapes):
    """Measures and prints them."""
    for shape in shapes:
        found = compare(options, shape)
        if options.json:
            sizes = dict(zip(("rows", "features", "classes") if options.linear else ("rows", "classes"), shape))
            for row in found:
                print(json.dumps({**sizes, **row, **({"op": "loss"} if options.op == "loss" else {})}), flush=True)
            continue
        sizes = " x ".join(map(str, shape))
        print("\n%s\n%-9s %10s %10s %9s %15s" % (sizes, "", "ms", "least", "/ clxent", "range"))
        for row in found:
            if "ms" in row:
                print(
                    "%(peer)-9s %(ms)10.2f %(least_ms)10.2f %(ratio)9.2f %(ratio_least)7.2f - %(ratio_most)5.2f"
                    "  %(version)s" % row
                )
            else:
                print("%(peer)-9s %(version)s" % row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
